-- endpoint: (no edge) read an endpoint's record, and count its deliveries
-- KEYS: endpoint
-- ARGV: name
-- Returns {at, pending, being tried, queued, field, value, ...}
local at = now()
local endpoint, pending, trying, line = endpoint_keys(ARGV[1])
return {at, redis.call('ZCARD', pending), redis.call('ZCOUNT', trying, at, '+inf'),
  redis.call('ZCARD', line), unpack(redis.call('HGETALL', endpoint))}
