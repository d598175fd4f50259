-- correct: (no edge) publish the right result after a person's wrong decision on a review, once
-- KEYS: job
-- ARGV: id, the right decision (registered | rejected), actor, ticket, then the event as for tell()
--       in _lib
-- Returns {'done', state}, or {'stale', state}: no person decided on it, or 'corrected':
-- it was corrected before. State, record and first event stay unchanged; the correction is added.
local id, to, at = ARGV[1], ARGV[2], now()
local job, decided, corrected, ticket = load_job(id, 'decided', 'corrected', 'corrected_as')
if not job then return {'stale', 'gone'} end
-- A repeat: the first answer was lost.
if ticket == ARGV[4] then
  write_again()
  return {'done', job.state}
end
if corrected then return {'stale', 'corrected'} end
if decided ~= job.state then return {'stale', job.state} end
-- The event goes first, as at a job's end.
tell(id, at, ARGV, 5, job)
redis.call('HSET', KEYS[1], 'corrected', to, 'corrected_at', at, 'corrected_as', ARGV[4], 'correction',
  ARGV[9], 'log', noted(job.log, at, 'corrected to ' .. to .. ' by ' .. name_of(ARGV[3])))
count('corrected')
record_act(ARGV[3], 'review.correct', id, decided, to)
return {'done', job.state}
