#!/bin/bash
# KnownHostsCommand of ssh: claims the bastion that was reached, by the names in its certificate.
# When another lease holds it this fails, and ssh hangs up before it authenticates.
# Usage: claim.sh REASON HOST TYPE KEY
set -u
if [ "$1" != ORDER ]; then # ssh asks for this first, without a key
  # The names of the certificate, without the one that all bastions share.
  mapfile -t names < <(ssh-keygen -L -f - <<<"$3 $4" |
    sed -n '/Principals:/,/Critical Options:/s/^ \{16,\}//p' | grep -vxF "$2")
  trackctl claim "${names[@]}" >&2 || exit 1
fi
echo "@cert-authority * $(<"${TRACKD_SSH:-/etc/trackd/ssh}/host_ca.pub")"
