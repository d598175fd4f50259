-- quarantine: (no edge) keep a message that could not be processed
-- KEYS: quarantine, entry
-- ARGV: id, ticket, at most how many, field, value, ... of the entry
-- Returns how often this message has come. Beyond the most, the oldest is dropped, and counted.
-- The id is derived from the content: a message that is delivered again is kept once. `ticket`
-- distinguishes a client's retry after a lost answer from that.
local id, at = ARGV[1], string.format('%.0f', now())
local seen = redis.call('HMGET', KEYS[2], 'ticket', 'times')
if seen[1] == ARGV[2] then return tonumber(seen[2] or 0) or 0 end
redis.call('HSET', KEYS[2], 'ticket', ARGV[2], 'at', at, unpack(ARGV, 4))
redis.call('HSETNX', KEYS[2], 'first_at', at)
redis.call('ZADD', KEYS[1], at, id)
count('quarantined')
while redis.call('ZCARD', KEYS[1]) > tonumber(ARGV[3]) do
  local oldest = redis.call('ZPOPMIN', KEYS[1])
  redis.call('DEL', KEYS[1] .. ':' .. oldest[1])
  count('quarantine_dropped')
end
return increase(KEYS[2], 'times', 1)
