-- plan: (no edge) store an act on many items, and the results so far
-- KEYS: plan, plans
-- ARGV: id, how long it is kept (ms), then name, value, ... of its fields
-- Returns 1. A repeat changes nothing.
local at, kept = now(), tonumber(ARGV[2])
redis.call('HSET', KEYS[1], unpack(ARGV, 3))
redis.call('PEXPIRE', KEYS[1], kept)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', at)
redis.call('ZADD', KEYS[2], at + kept, ARGV[1])
redis.call('PEXPIRE', KEYS[2], kept)
return 1
