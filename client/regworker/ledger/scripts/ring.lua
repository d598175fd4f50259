-- ring: (no edge) take the due alarms, put each off, and wake their owners
-- KEYS: alarms
-- ARGV: at most how many, how many wake-ups may wait in a lane
-- Returns {next due or 0, at, how many were due, {unreadable member, ...}, member, lane, sure
-- (1 | 0), ...}: those that a worker must wake, since the broker is not here. A member that is not
-- sure may be omitted while its lane is full: its wake-up would only wait.

-- A member whose key is no record is put off for so long, and reported each time: it cannot be
-- attempted, but continues once its record is repaired.
local PUT_OFF = 600000

local at, most = now(), tonumber(ARGV[2])
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', at, 'LIMIT', 0, ARGV[1])
local woken, unreadable, crowded = {}, {}, {}

-- Whether a lane at this server is full.
local function full(lane)
  if crowded[lane] == nil then
    local here = lane_here(lane)
    crowded[lane] = here and (tonumber(peek('LLEN', here.list)) or 0) > most
  end
  return crowded[lane]
end

for _, member in ipairs(due) do
  local delivery = member:sub(1, 2) == 'd:'
  local key = delivery and PREFIX .. 'delivery:' .. member or job_key(member)
  local seen = peek('HMGET', key, 'state', 'wakes', 'lane')
  local state, wakes = seen and seen[1], seen and tonumber(seen[2] or '0') or 0
  if not (wakes >= 0 and wakes < 1e9) then wakes = 0 end
  if not seen then
    redis.call('ZADD', KEYS[1], at + PUT_OFF, member)
    unreadable[#unreadable + 1] = member
  elseif state == 'queued' or state == 'calling' or state == 'unknown' or state == 'pending' then
    redis.call('ZADD', KEYS[1], at + push_of(wakes), member)
    redis.call('HSET', key, 'wakes', wakes + 1)
    local lane = delivery and 'delivery' or seen[3] == 'bulk' and 'bulk' or 'live'
    local sure = state ~= 'queued' and state ~= 'pending' or wakes % SURE == 0
    if (sure or not full(lane)) and not put(member, lane, at) then
      woken[#woken + 1] = member
      woken[#woken + 1] = lane
      woken[#woken + 1] = sure and 1 or 0
    end
  else
    redis.call('ZREM', KEYS[1], member)
  end
end
local first = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
return {first[2] and tonumber(first[2]) or 0, at, #due, unreadable, unpack(woken)}
