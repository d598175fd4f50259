-- bury: (a delivery) pending -> dead, of an endpoint that is disabled
-- KEYS: endpoint
-- ARGV: name, at most how many
-- Returns how many. What is being tried just now is left: it may yet arrive, and settles itself.
local at = now()
local e = table_of(redis.call('HGETALL', KEYS[1]))
if e.disabled ~= '1' then return 0 end
local _, pending, trying = endpoint_keys(ARGV[1])
redis.call('ZREMRANGEBYSCORE', trying, '-inf', at)
local why = 'the endpoint is disabled: ' .. e.why
local buried, last = 0, tonumber(ARGV[2]) + redis.call('ZCARD', trying) - 1
for _, member in ipairs(redis.call('ZRANGE', pending, 0, last)) do
  if not redis.call('ZSCORE', trying, member) then
    local found = redis.call('HMGET', delivery_key(member), 'endpoint', 'job')
    local d = {endpoint = found[1], job = found[2]}
    tell_job(d, at, 'dead ' .. why)
    bury(member, d, at, why)
    buried = buried + 1
  end
end
return buried
