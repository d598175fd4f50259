-- retry: (a delivery) pending: tried now, whatever it waits for
-- KEYS: alarms
-- ARGV: ticket, actor, member...
-- Returns for each 'due', 'trying' (a worker has it now) or 'gone' (it is not pending). `ticket`
-- distinguishes a client's retry after a lost answer from another person's.
local at, answer = now(), {}
for i = 3, #ARGV do
  local member = ARGV[i]
  local found = peek('HMGET', delivery_key(member), 'state', 'lease_until', 'retry', 'endpoint', 'job') or {}
  local said = 'gone'
  if found[1] == 'pending' and found[3] == ARGV[1] then
    said = 'due'
  elseif found[1] == 'pending' then
    said = tonumber(found[2] or 0) > at and 'trying' or 'due'
    if said == 'due' then
      record_act(ARGV[2], 'delivery.retry', member, 'pending', 'due')
      redis.call('HSET', delivery_key(member), 'due_at', '0', 'wakes', '0', 'retry', ARGV[1])
      redis.call('ZADD', KEYS[1], at, member)
      tell_job({endpoint = found[4], job = found[5]}, at, 'tried now')
    end
  end
  answer[#answer + 1] = said
end
return answer
