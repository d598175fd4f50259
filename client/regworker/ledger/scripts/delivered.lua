-- delivered: (a delivery) pending -> gone (arrived) | pending (tried again later) | dead
-- KEYS: delivery, alarms
-- ARGV: member, fence, verdict (arrived | later | dead), reason, delay_ms, blame (1 | 0)
-- blame: whether a failure is the endpoint's. A try that the worker could not make says nothing of
-- the endpoint: it counts neither as a try nor as a failure, and its 2nd answer is 0.
-- Returns {state afterwards ('stale': another worker tries), for how many ms its endpoint has only
-- failed}. Anybody may report an arrival of this delivery, but not of one that it replaced.
local member, verdict, at, blamed = ARGV[1], ARGV[3], now(), ARGV[6] == '1'

-- A failure so long after the previous one starts a new count: the endpoint may have worked in
-- between. Longer than the longest pause between two tries at one delivery.
local UNHEARD = 172800000

local found = redis.call('HMGET', KEYS[1], 'state', 'endpoint', 'job', 'fence', 'settled', 'why',
  'replaced')
local d = {state = found[1], endpoint = found[2], job = found[3], fence = found[4],
  settled = found[5]}
if not d.state then return {'gone', 0} end
-- A try at an earlier delivery of this name, with another event.
if found[7] and tonumber(ARGV[2]) <= (tonumber(found[7]) or 0) then return {'stale', 0} end
local endpoint, pending = endpoint_keys(d.endpoint)
local e = table_of(redis.call('HGETALL', endpoint))
local function answer(state)
  return {state, blamed and e.failing_since and at - tonumber(e.failing_since) or 0}
end
-- A repeat of the same settle: the first answer was lost.
if d.settled == ARGV[2] .. ' ' .. verdict then return answer(d.state) end
local holder = d.fence == ARGV[2] and d.state == 'pending'
if not holder and verdict ~= 'arrived' then return {'stale', 0} end

-- A worker that keeps lacking the same must not fill the timeline.
if blamed or verdict ~= 'later' or found[6] ~= ARGV[4] then
  tell_job(d, at, verdict .. ' ' .. ARGV[4])
end
if verdict == 'arrived' then
  if e.failing_since then
    redis.call('HDEL', endpoint, 'failing_since', 'failed_at', 'failures')
    e.failing_since = nil
  end
  vacate(member, d.endpoint, at)
  if d.state == 'dead' then
    redis.call('ZREM', DEAD, member)
  else
    redis.call('ZREM', KEYS[2], member)
    redis.call('ZREM', pending, member)
  end
  redis.call('DEL', KEYS[1])
  count('delivered')
  return answer('delivered')
end

if blamed then
  if not e.failing_since or at - (tonumber(e.failed_at or 0) or 0) > UNHEARD then
    e.failing_since = at
    redis.call('HSET', endpoint, 'failing_since', at, 'failures', '0')
  end
  redis.call('HSET', endpoint, 'failed_at', at)
  increase(endpoint, 'failures', 1)
  increase(KEYS[1], 'tries', 1)
end
vacate(member, d.endpoint, at)
redis.call('HSET', KEYS[1], 'lease_until', '0', 'why', ARGV[4],
  'settled', ARGV[2] .. ' ' .. verdict)
if verdict == 'later' and e.disabled ~= '1' then
  local till = at + tonumber(ARGV[5])
  redis.call('HSET', KEYS[1], 'due_at', till)
  redis.call('ZADD', KEYS[2], till, ARGV[1])
  return answer('pending')
end
-- Also a try that went on while the endpoint was disabled: it is not retried later.
bury(member, d, at, ARGV[4])
return answer('dead')
