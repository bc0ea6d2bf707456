#!/bin/bash
# One tunnel to a bastion behind the balancer; `trackctl keep -- tunnel.sh` keeps one to each.
# ssh claims the bastion before it authenticates: see claim.sh. What the bastion prints is gossip.
set -u
errors=$(mktemp)
trap 'cat "$errors" >&2; rm -f "$errors"' EXIT
ssh -F "${TRACKD_SSH:-/etc/trackd/ssh}/ssh_config" bastions 2>"$errors"
case $(<"$errors") in
  *"Permission denied"* | *"verification failed"*) exit 77 ;; # auth: not allowed
  *"Connection refused"* | *kex_exchange*) exit 69 ;;         # refused: nobody is behind it
  *"timed out"*) exit 124 ;;                                  # timeout: no reply in time
esac
