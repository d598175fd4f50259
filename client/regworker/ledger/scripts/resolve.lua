-- resolve: review -> registered | rejected | unknown
-- KEYS: job, alarms
-- ARGV: id, decision (registered | rejected | resend), actor, ticket, fence and reopened as seen by
--       the caller, deadline_ms, retention_ms, then the event as for tell() in _lib (not with
--       resend)
-- Returns {'done', state} or {'stale', state}: not in review, or in another review than the caller
-- has seen. Nothing is sent because of this alone: after `resend` a lookup comes first, and only a
-- provably absent customer is sent.
local id, decision, at = ARGV[1], ARGV[2], now()
local job = load_job(id)
if not job then return {'stale', 'gone'} end
-- A repeat: the first answer was lost.
if redis.call('HGET', KEYS[1], 'resolved') == ARGV[4] then
  write_again()
  return {'done', job.state}
end
local seen = job.fence == tonumber(ARGV[5]) and job.reopened == tonumber(ARGV[6])
if job.state ~= 'review' or not seen then return {'stale', job.state} end
local changes = {resolved = ARGV[4], log = noted(job.log, at, decision .. ' by ' .. name_of(ARGV[3]))}
local function note(state) record_act(ARGV[3], 'review.' .. decision, id, 'review', state) end
if decision == 'resend' then
  redis.call('ZREM', REVIEWS, id)
  changes.state, changes.deadline_at = 'unknown', at + tonumber(ARGV[7])
  changes.asks, changes.attempts, changes.due_at, changes.wakes = 0, 0, 0, 0
  changes.reopened = job.reopened + 1
  -- A call may have led to the review. Look-ups without an answer count from now on; and only the
  -- next one says whether the customer exists: the person may have changed that.
  changes.unknowns, changes.settle_until = job.unknowns + 1, math.max(job.settle_until, at)
  changes.unproved, changes.refusals = 0, 0
  set(id, job, changes)
  wake_now(id, job.lane, at)
  note('unknown')
  return {'done', 'unknown'}
end
-- May be corrected once, since a person has decided it.
changes.decided = decision
finish(id, job, at, decision, kept_for(ARGV[8]), ARGV, 9, changes)
note(decision)
return {'done', decision}
