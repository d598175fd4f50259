-- hold: (no edge) an operator pauses or resumes an account
-- KEYS: alarms
-- ARGV: provider, account, pause | resume, who and why, at most how many jobs to let go
-- Returns the number of jobs let go; more may wait while it is as many as asked for.
local name, at = ARGV[1] .. ':' .. ARGV[2], now()
local account, waiting = PREFIX .. 'account:' .. name, PREFIX .. 'waiting:' .. name
if ARGV[3] == 'pause' then
  redis.call('HSET', account, 'paused', '1', 'reason', ARGV[4], 'since', at)
  return 0
end
redis.call('HSET', account, 'paused', '0', 'breaker', 'closed', 'failures', '0', 'reason', '',
  'since', at)
local first = redis.call('ZPOPMIN', waiting, ARGV[5])
for i = 1, #first, 2 do alarm(first[i], at) end
return #first / 2
