-- ring: (no edge) take the alarms that are due, push each ahead, say who is to be woken
-- KEYS: alarms
-- ARGV: at most how many
-- Returns {next due or 0, at, member, lane, sure (1 | 0), ...}; a delivery's lane is 'delivery'. Who
-- is not sure to need it may be left out while its lane is crowded: its wake-up merely waits.
local at = now()
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', at, 'LIMIT', 0, ARGV[1])
local woken = {}
for _, member in ipairs(due) do
  local delivery = member:sub(1, 2) == 'd:'
  local key = delivery and PREFIX .. 'delivery:' .. member or job_key(member)
  local seen = redis.call('HMGET', key, 'state', 'wakes', 'lane')
  local state, wakes = seen[1], tonumber(seen[2] or '0')
  if state == 'queued' or state == 'calling' or state == 'unknown' or state == 'pending' then
    redis.call('ZADD', KEYS[1], at + push_of(wakes), member)
    redis.call('HSET', key, 'wakes', wakes + 1)
    woken[#woken + 1] = member
    woken[#woken + 1] = delivery and 'delivery' or seen[3]
    woken[#woken + 1] = (state ~= 'queued' and state ~= 'pending' or wakes % SURE == 0) and 1 or 0
  else
    redis.call('ZREM', KEYS[1], member)
  end
end
local first = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
return {first[2] and tonumber(first[2]) or 0, at, unpack(woken)}
