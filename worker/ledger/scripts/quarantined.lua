-- quarantined: (no edge) what is in quarantine, the newest first, without content
-- KEYS: quarantine
-- ARGV: at most how many
-- Returns {how many there are, how many were dropped for room, {id, field, value, ...}, ...}
local dropped = redis.call('HGET', PREFIX .. 'stats', 'quarantine_dropped')
local answer = {redis.call('ZCARD', KEYS[1]), tonumber(dropped or '0')}
for _, id in ipairs(redis.call('ZREVRANGE', KEYS[1], 0, ARGV[1] - 1)) do
  local entry = {id}
  local fields = {'first_at', 'at', 'times', 'queue', 'reason', 'size', 'whole'}
  local values = redis.call('HMGET', KEYS[1] .. ':' .. id, unpack(fields))
  for i, name in ipairs(fields) do
    entry[#entry + 1] = name
    entry[#entry + 1] = values[i] or ''
  end
  answer[#answer + 1] = entry
end
return answer
