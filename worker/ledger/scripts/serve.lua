-- serve: (no edge) what the endpoints may get that a worker delivers to
-- KEYS: none that could be named before the endpoints are
-- ARGV: dead_retention_ms, then endpoint, max_in_flight for each
for i = 2, #ARGV, 2 do
  local endpoint = endpoint_keys(ARGV[i])
  redis.call('HSET', endpoint, 'max_in_flight', ARGV[i + 1], 'dead_retention', ARGV[1])
end
return 1
