-- resolve: review -> registered | rejected | unknown
-- KEYS: job, alarms
-- ARGV: id, decision (registered | rejected | resend), who, ticket, deadline_ms, retention_ms, then
--       the event as tell() in _lib takes it (not with resend)
-- Returns {'done', state, member...} or {'stale', state}. Nothing is sent again by this: `resend`
-- asks first, and only what is proved absent then is sent.
local id, decision, at = ARGV[1], ARGV[2], now()
local job = load_job(id)
if not job then return {'stale', 'gone'} end
-- Once more: the answer was lost on the way.
if redis.call('HGET', KEYS[1], 'resolved') == ARGV[4] then return {'done', job.state} end
if job.state ~= 'review' then return {'stale', job.state} end
local changes = {resolved = ARGV[4], log = noted(job.log, at, decision .. ' by ' .. ARGV[3])}
if decision == 'resend' then
  redis.call('ZREM', REVIEWS, id)
  changes.state, changes.deadline_at = 'unknown', at + tonumber(ARGV[5])
  changes.asks, changes.attempts, changes.due_at, changes.wakes = 0, 0, 0, 0
  set(id, job, changes)
  alarm(id, at)
  return {'done', 'unknown'}
end
return {'done', decision, unpack(finish(id, job, at, decision, ARGV[6], ARGV, 7, changes))}
