-- hold: (no edge) an operator pauses or resumes an account
-- KEYS: alarms
-- ARGV: provider, account, pause | resume, why, at most how many jobs to release, actor, ticket,
--       until when a pause lasts (ms; 0: until an operator resumes)
-- Returns the number of jobs released; more may wait if it is the given maximum; -1 if there was
-- nothing to resume: neither a pause nor a breaker that is open. Then nothing changes. `ticket`: the same
-- for all batches of one act, and for its repeat after a lost answer: it changes the account once,
-- and nothing once another act has followed it.
local name, at = ARGV[1] .. ':' .. ARGV[2], now()
local account, waiting = PREFIX .. 'account:' .. name, PREFIX .. 'waiting:' .. name
local pause = ARGV[3] == 'pause'
local done = ARGV[3] .. 'd_by'
local was = redis.call('HMGET', account, 'paused', 'breaker', 'held_by', done, 'paused_until')
local again = was[4] == ARGV[7]
if again and (pause or was[3] ~= ARGV[7]) then return 0 end
-- Before anything is written: it raises an error if that key is of another type.
redis.call('ZCARD', waiting)
local paused = pause_of(was[1], was[5], at)
local closed = not was[2] or was[2] == '' or was[2] == 'closed'
if not again and not pause and not paused and closed then return -1 end
if not again then
  record_act(ARGV[6], 'account.' .. ARGV[3], ARGV[1] .. '/' .. ARGV[2],
    paused and 'paused' or was[2] or 'closed', pause and 'paused' or 'closed')
end
if pause then
  redis.call('HSET', account, 'paused', '1', 'reason', ARGV[4], 'since', at, 'held_by', ARGV[7],
    done, ARGV[7], 'paused_until', ARGV[8])
  return 0
end
if not again then
  redis.call('HSET', account, 'paused', '0', 'breaker', 'closed', 'failures', '0', 'reason', '',
    'since', at, 'held_by', ARGV[7], done, ARGV[7])
end
local first = redis.call('ZPOPMIN', waiting, ARGV[5])
for i = 1, #first, 2 do alarm(first[i], at) end
return #first / 2
