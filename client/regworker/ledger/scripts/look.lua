-- look: (no edge) read a record: of a job, or of a message in quarantine
-- KEYS: record
-- Returns {field, value, ...}, empty if there is none. One that is larger than any that workers
-- write is an error: it must not be sent to the caller.
local MOST, LARGEST = 64, 4 * 1024 * 1024
local size, fields = 0, redis.call('HLEN', KEYS[1])
local flat = fields <= MOST and redis.call('HGETALL', KEYS[1]) or {}
for i = 1, #flat do size = size + #flat[i] end
if fields > MOST or size > LARGEST then
  return redis.error_reply('TOOLARGE ' .. KEYS[1] .. ' has ' .. fields .. ' fields of ' .. size
    .. ' bytes read: no worker wrote that')
end
return flat
