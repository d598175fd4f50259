-- beat: (no edge) a worker's heartbeat, with the condition of its parts
-- KEYS: workers, worker
-- ARGV: name, keep_ms (how long it is kept after its last heartbeat), field, value, ...
-- Returns the server's time.
local at = now()
redis.call('HSET', KEYS[2], 'at', at, 'name', ARGV[1], unpack(ARGV, 3))
redis.call('PEXPIRE', KEYS[2], ARGV[2])
redis.call('ZADD', KEYS[1], at, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', at - tonumber(ARGV[2]))
return at
