-- bury: (a delivery) pending -> dead, of a disabled endpoint
-- KEYS: endpoint
-- ARGV: name, at most how many
-- Returns how many. A delivery that is being tried is left: it may still arrive, and settles
-- itself.
local at = now()
local e = table_of(redis.call('HGETALL', KEYS[1]))
if e.disabled ~= '1' then return 0 end
local _, pending, trying = endpoint_keys(ARGV[1])
redis.call('ZREMRANGEBYSCORE', trying, '-inf', at)
local why = 'the endpoint is disabled: ' .. (e.why or '')
local buried, last = 0, tonumber(ARGV[2]) + redis.call('ZCARD', trying) - 1
for _, member in ipairs(redis.call('ZRANGE', pending, 0, last)) do
  if not redis.call('ZSCORE', trying, member) then
    local found = peek('HMGET', delivery_key(member), 'job')
    if found then
      local d = {endpoint = ARGV[1], job = found[1]}
      tell_job(d, at, 'dead ' .. why)
      bury(member, d, at, why)
    else
      redis.call('ZREM', pending, member)  -- its key is no record
    end
    buried = buried + 1
  end
end
return buried
