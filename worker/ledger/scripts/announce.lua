-- announce: (no edge) what a worker can serve, and its accounts' limits
-- KEYS: configured
-- ARGV: n accounts, then provider, account, interval_ms, burst_ms, max_in_flight for each, then
--       name, stream ('plain <key>', 'sealed <key>'; empty where it is none) for each endpoint
local i = 2
for _ = 1, tonumber(ARGV[1]) do
  local name = ARGV[i] .. ':' .. ARGV[i + 1]
  redis.call('SADD', KEYS[1], 'account:' .. name)
  redis.call('HSET', PREFIX .. 'account:' .. name, 'interval', ARGV[i + 2], 'burst', ARGV[i + 3],
    'max_in_flight', ARGV[i + 4])
  i = i + 5
end
for j = i, #ARGV, 2 do
  redis.call('SADD', KEYS[1], 'endpoint:' .. ARGV[j])
  if ARGV[j + 1] == '' then
    redis.call('HDEL', STREAMS, ARGV[j])
  else
    redis.call('HSET', STREAMS, ARGV[j], ARGV[j + 1])
  end
end
return 1
