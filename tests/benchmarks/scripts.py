"""The same decisions as Lua scripts in Redis: rules 2, 6, 8, 9 and 10, and no more.

What trackd does beside them is left out: no sessions, no owners, no exactly-once, nobody who
waits, and one generation in each group. So it is the least that a user of Redis would need.
"""

from __future__ import annotations

from typing import Any

import msgpack

_PURGE = """
local function purge(now)
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', 'expiry', '-inf', '(' .. now)) do
    redis.call('ZREM', 'expiry', name)
    redis.call('HDEL', 'place', name)
    if redis.call('HEXISTS', 'holders', name) == 1 then redis.call('DECR', 'claimed_desired') end
  end
end
"""
_TRY_ACQUIRE = (
    _PURGE
    + """
purge(ARGV[1])
local desired = redis.call('ZCARD', 'expiry')
local claimed = redis.call('HLEN', 'holders')
local inflight = redis.call('HLEN', 'leases') - claimed
local count = tonumber(redis.call('GET', 'count') or '0')
local target = desired
if count > 0 and count < desired then target = count end
local bootstrap = inflight == 0 and (claimed == 0 or desired == 0)
if bootstrap or target > tonumber(redis.call('GET', 'claimed_desired') or '0') + inflight then
  local lease = redis.call('INCR', 'last_lease')
  redis.call('HSET', 'leases', lease, '')
  return lease
end
return 0
"""
)
_CLAIM = """
local held = redis.call('HGET', 'leases', ARGV[1])
if held ~= '' or redis.call('HEXISTS', 'holders', ARGV[2]) == 1 then return 0 end
redis.call('HSET', 'leases', ARGV[1], ARGV[2])
redis.call('HSET', 'holders', ARGV[2], ARGV[1])
if redis.call('ZSCORE', 'expiry', ARGV[2]) then redis.call('INCR', 'claimed_desired') end
return 1
"""
_RELEASE = """
local held = redis.call('HGET', 'leases', ARGV[1])
if not held then return 0 end
redis.call('HDEL', 'leases', ARGV[1])
if held ~= '' then
  redis.call('HDEL', 'holders', held)
  if redis.call('ZSCORE', 'expiry', held) then redis.call('DECR', 'claimed_desired') end
end
return 1
"""
_IS_CLAIMED = "return redis.call('HEXISTS', 'holders', ARGV[1])"
_GOSSIP = """
local now = tonumber(ARGV[1])
for _, row in ipairs(cmsgpack.unpack(ARGV[2])) do
  local new = redis.call('ZADD', 'expiry', now + row[4], row[1])
  redis.call('HSET', 'place', row[1], row[2] .. '/' .. row[3])
  if new == 1 and redis.call('HEXISTS', 'holders', row[1]) == 1 then
    redis.call('INCR', 'claimed_desired')
  end
end
return 0
"""


class LeaseScripts:
    """The scripts, for one connection of redis-py, or for one of its pipelines."""

    def __init__(self, client: Any) -> None:
        self._client = client
        register = client.register_script
        self._try_acquire = register(_TRY_ACQUIRE)
        self._claim = register(_CLAIM)
        self._release = register(_RELEASE)
        self._is_claimed = register(_IS_CLAIMED)
        self._gossip = register(_GOSSIP)

    def try_acquire(self, now: float, pipeline: Any = None) -> Any:
        """Return the number of a lease, or 0."""
        return self._try_acquire(args=[now], client=pipeline)

    def claim(self, lease: int, name: str, pipeline: Any = None) -> Any:
        """Return 1 when the lease now holds the proxy."""
        return self._claim(args=[lease, name], client=pipeline)

    def release(self, lease: int, pipeline: Any = None) -> Any:
        """Return 1 when the lease held anything."""
        return self._release(args=[lease], client=pipeline)

    def is_claimed(self, name: str, pipeline: Any = None) -> Any:
        """Return 1 when a lease holds the proxy."""
        return self._is_claimed(args=[name], client=pipeline)

    def gossip(self, rows: list[list[Any]], now: float) -> None:
        """Track proxies."""
        self._gossip(args=[now, msgpack.packb(rows)])

    def set_count(self, count: int) -> None:
        """Set how many connections are wanted."""
        self._client.set("count", count)
