-- renew: (no edge) the leases of one worker, all at once
-- KEYS: alarms
-- ARGV: lease_ms, then id, fence for each lease
-- Returns {1 | 0, ...}: 0 if the lease is lost: another worker has the job, it ended, or the lease
-- expired.
local at, lease = now(), tonumber(ARGV[1])
local kept = {}
for i = 2, #ARGV, 2 do
  local id = ARGV[i]
  local held = peek('HMGET', job_key(id), 'fence', 'lease_until', 'provider', 'account') or {}
  held[2] = tonumber(held[2] or 0)
  if held[1] == ARGV[i + 1] and tonumber(held[2] or '0') > at and held[3] and held[4] then
    local till = at + lease
    redis.call('HSET', job_key(id), 'lease_until', till)
    redis.call('ZADD', KEYS[1], till, id)
    -- An account's key of a wrong type must not cost other accounts their leases.
    redis.pcall('ZADD', PREFIX .. 'inflight:' .. held[3] .. ':' .. held[4], 'XX', till, id)
    kept[#kept + 1] = 1
  else
    kept[#kept + 1] = 0
  end
end
return kept
