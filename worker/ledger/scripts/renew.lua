-- renew: (no edge) the leases one worker holds, all at once
-- KEYS: alarms
-- ARGV: lease_ms, then id, fence for each lease
-- Returns {1 | 0, ...}: 0 where the lease is lost: the job is somebody else's, over, or ran out.
local at, lease = now(), tonumber(ARGV[1])
local kept = {}
for i = 2, #ARGV, 2 do
  local id = ARGV[i]
  local held = redis.call('HMGET', job_key(id), 'fence', 'lease_until', 'provider', 'account')
  if held[1] == ARGV[i + 1] and tonumber(held[2] or '0') > at then
    local till = at + lease
    redis.call('HSET', job_key(id), 'lease_until', till)
    redis.call('ZADD', KEYS[1], till, id)
    redis.call('ZADD', PREFIX .. 'inflight:' .. held[3] .. ':' .. held[4], 'XX', till, id)
    kept[#kept + 1] = 1
  else
    kept[#kept + 1] = 0
  end
end
return kept
