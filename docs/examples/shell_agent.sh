#!/bin/bash
# An agent in the shell: keeps one tunnel open, and dials again when trackd grants a lease.
#
#     shell_agent.sh my-tunnel example.com:3024
#
# The arguments are a command that dials. Its first line of output is the names that the proxy
# presents, separated by blanks. Then it serves the tunnel, and prints gossip: one JSON message a
# line.
set -u

if [ -z "${TRACKD_LEASE-}" ]; then
  # trackctl waits for a lease and runs this script again, with the lease.
  while :; do
    trackctl hold -- "$0" "$@"
    [ $? -lt 128 ] || sleep 1 # another agent has that proxy: pause before the next dial
  done
fi

exec 5< <(exec "$@")
tunnel=$!
trap 'kill "$tunnel" 2>/dev/null' EXIT
trap 'exit 143' TERM # trackctl ends this script: the lease is lost, or a person stopped it
read -r principals <&5 || exit 1
echo "$principals" >&3
read -r outcome name <&4
[ "$outcome" = claimed ] || exit 1
echo "serving $name with lease $TRACKD_LEASE"
# Until the tunnel closes. It survives bad lines and restarts of the daemon; should it fail all
# the same, the tunnel serves on without gossip.
{ trackctl gossip --follow <&5 >/dev/null || cat <&5 >/dev/null; } &
wait $!
