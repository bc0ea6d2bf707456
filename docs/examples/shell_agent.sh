#!/bin/bash
# An agent in the shell: one tunnel to each proxy, as far as trackd grants leases.
#
#     shell_agent.sh my-tunnel example.com:3024
#
# The arguments are a command that dials. Its first line of output is the names that the proxy
# presents, separated by blanks. Then it serves the tunnel, and prints gossip: one JSON message a
# line.
set -u

if [ -z "${TRACKD_LEASE-}" ]; then
  # trackctl runs this script again for each tunnel that is missing, with a lease. When one fails
  # it pauses, and when this script has to end it ends all that the script started.
  exec trackctl keep -- "$0" "$@"
fi

exec 5< <(exec "$@")
read -r principals <&5 || exit 1
echo "$principals" >&3
read -r outcome name <&4
[ "$outcome" = claimed ] || exit 1
echo "serving $name with lease $TRACKD_LEASE"
exec cat <&5 # gossip, which trackctl feeds, until the tunnel closes
