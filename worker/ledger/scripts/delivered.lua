-- delivered: (a delivery) pending -> gone (arrived) | pending (tried again later) | dead
-- KEYS: delivery, alarms, dead
-- ARGV: member, fence, verdict (arrived | later | dead), reason, delay_ms
-- Returns the delivery's state then, or 'stale'. An arrival counts from anyone.
local at, verdict = now(), ARGV[3]
local d = table_of(redis.call('HGETALL', KEYS[1]))
if not d.state then return 'gone' end
-- The same settle once more: the answer to it was lost on the way.
if d.settled == ARGV[2] .. ' ' .. verdict then return d.state end
local holder = d.fence == ARGV[2] and d.state == 'pending'
if not holder and verdict ~= 'arrived' then return 'stale' end
if redis.call('EXISTS', job_key(d.job)) == 1 then
  local log = redis.call('HGET', job_key(d.job), 'log')
  note(d.job, {log = log}, at, 'delivery to ' .. d.endpoint .. ': ' .. verdict .. ' ' .. ARGV[4])
end
if verdict == 'arrived' then
  redis.call('DEL', KEYS[1])
  redis.call('ZREM', KEYS[2], ARGV[1])
  redis.call('ZREM', KEYS[3], ARGV[1])
  redis.call('HINCRBY', PREFIX .. 'stats', 'delivered', 1)
  return 'delivered'
end
redis.call('HINCRBY', KEYS[1], 'tries', 1)
redis.call('HSET', KEYS[1], 'lease_until', '0', 'why', ARGV[4],
  'settled', ARGV[2] .. ' ' .. verdict)
if verdict == 'later' then
  local till = string.format('%.0f', at + tonumber(ARGV[5]))
  redis.call('HSET', KEYS[1], 'due_at', till)
  redis.call('ZADD', KEYS[2], till, ARGV[1])
  return 'pending'
end
redis.call('HSET', KEYS[1], 'state', 'dead')
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZADD', KEYS[3], string.format('%.0f', at), ARGV[1])
redis.call('HINCRBY', PREFIX .. 'stats', 'dead', 1)
return 'dead'
