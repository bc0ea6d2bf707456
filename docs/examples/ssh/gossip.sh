#!/bin/sh
# Forced command of the user tunnel on each bastion: says every 3 s which bastions there are.
# The file has one name a line. Nobody dials for a bastion whose line is "NAME terminating". A name
# that is missing is forgotten after 12 s.
going='{"metadata":{"name":"\1"},"ttl":12000000000,"trackd":{"terminating":true}}'
there='{"metadata":{"name":"\1"},"ttl":12000000000,"trackd":{"terminating":false}}'
while sed -e "s/^\([^ ]*\) terminating$/$going/;t" -e "s/\(.*\)/$there/" \
  "${1:-/etc/trackd/bastions}" | paste -sd, | sed 's/.*/{"proxies":[&]}/'; do
  sleep 3
done
