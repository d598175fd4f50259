-- pace: (no edge) an operator sets an account's pace, or returns to the setting
-- KEYS: account, waiting
-- ARGV: interval_ms and burst_ms ('': of the setting), the pace as text, actor, the account's name
--       in the audit log, ticket, at most how many waiting jobs to try again now
-- Returns the previous pace as text. The used part of the old pace counts as the same part of the
-- new one, so that a change allows no extra calls. `ticket` distinguishes a client's retry after a
-- lost answer from another action.
local at = now()
local was = redis.call('HMGET', KEYS[1], 'interval', 'own_interval', 'own_pace', 'paced_by', 'tat')
local before = was[3] or 'the setting'
if was[4] == ARGV[6] then
  write_again()
  return before
end
local old = tonumber(was[2] or was[1] or 0) or 0
local new = tonumber(ARGV[1] ~= '' and ARGV[1] or was[1] or 0) or 0
record_act(ARGV[4], 'account.pace', ARGV[5], before, ARGV[3])
if ARGV[1] == '' then
  redis.call('HDEL', KEYS[1], 'own_interval', 'own_burst', 'own_pace')
else
  redis.call('HSET', KEYS[1], 'own_interval', ARGV[1], 'own_burst', ARGV[2], 'own_pace', ARGV[3])
end
local booked = (tonumber(was[5] or 0) or 0) - at
if booked > 0 and old > 0 then
  redis.call('HSET', KEYS[1], 'tat', string.format('%.3f', at + booked * new / old))
end
redis.call('HSET', KEYS[1], 'paced_by', ARGV[6])
local first = redis.call('ZPOPMIN', KEYS[2], ARGV[7])
for i = 1, #first, 2 do alarm(first[i], at) end
return before
