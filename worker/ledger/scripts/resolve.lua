-- resolve: review -> registered | rejected | unknown
-- KEYS: job, alarms
-- ARGV: id, decision (registered | rejected | resend), who, ticket, deadline_ms, retention_ms, then
--       the event as publish() in _lib takes it (not with resend)
-- Returns {'done', state, member...} or {'stale', state}. Nothing is sent again by this: `resend`
-- asks first, and only what is proved absent then is sent.
local id, decision, at = ARGV[1], ARGV[2], now()
local job = load_job(id)
if not job then return {'stale', 'gone'} end
-- Once more: the answer was lost on the way.
if job.resolved == ARGV[4] then return {'done', job.state} end
if job.state ~= 'review' then return {'stale', job.state} end
note(id, job, at, decision .. ' by ' .. ARGV[3])
if decision == 'resend' then
  redis.call('ZREM', REVIEWS, id)
  set(id, {state = 'unknown', resolved = ARGV[4], asks = 0, attempts = 0, due_at = 0, wakes = 0,
           deadline_at = at + tonumber(ARGV[5])}, job)
  alarm(id, at)
  return {'done', 'unknown'}
end
local members = finish(id, job, at, decision, tonumber(ARGV[6]), ARGV, 7)
set(id, {resolved = ARGV[4]})
return {'done', decision, unpack(members)}
