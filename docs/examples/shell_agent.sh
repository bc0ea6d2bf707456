#!/bin/bash
# An agent in the shell: keeps one tunnel open, and dials again whenever one is wanted.
#
#     shell_agent.sh my-tunnel example.com:3024
#
# The arguments are a command that dials. It prints the names that the proxy presents, separated
# by blanks, as its first line; then it serves, and prints gossip, one JSON message a line.
set -u

if [ -z "${TRACKD_LEASE-}" ]; then
  # trackctl waits for a lease and runs this script again, with the lease.
  while :; do
    trackctl hold -- "$0" "$@"
    [ $? -lt 128 ] || sleep 1 # another agent has that proxy: not at once again
  done
fi

exec 5< <(exec "$@")
tunnel=$!
trap 'kill "$tunnel" 2>/dev/null' EXIT
trap 'exit 143' TERM # nobody needs this tunnel
read -r principals <&5 || exit 1
echo "$principals" >&3
read -r outcome name <&4
[ "$outcome" = claimed ] || exit 1
echo "serving $name with lease $TRACKD_LEASE"
trackctl gossip --follow <&5 >/dev/null & # until the tunnel closes
wait $!
