-- quarantined: (no edge) what is in quarantine, the newest first, without content
-- KEYS: quarantine
-- ARGV: at most how many
-- Returns {how many there are, how many were dropped to limit it, {id, field, value, ...}, ...}
local dropped = redis.call('HGET', PREFIX .. 'stats', 'quarantine_dropped')
local answer = {redis.call('ZCARD', KEYS[1]), tonumber(dropped or 0) or 0}
for _, id in ipairs(redis.call('ZREVRANGE', KEYS[1], 0, ARGV[1] - 1)) do
  local entry = {id}
  local fields = {'first_at', 'at', 'times', 'queue', 'reason', 'size', 'whole'}
  local values = peek('HMGET', KEYS[1] .. ':' .. id, unpack(fields)) or {}
  if not values[1] then values = {'0', '0', '0', '?', 'its record cannot be read', '0', '0'} end
  for i, name in ipairs(fields) do
    entry[#entry + 1] = name
    -- Cut short: anybody may write to the quarantine, and must not fill a reader's memory.
    entry[#entry + 1] = (values[i] or ''):sub(1, 1024)
  end
  answer[#answer + 1] = entry
end
return answer
