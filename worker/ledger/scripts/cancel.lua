-- cancel: queued -> cancelled
-- KEYS: job, alarms
-- ARGV: id, attempts seen by the caller, retention_ms, then the event as tell() in _lib takes it
-- Returns {'done', state, member...}, or {'stale', state}: past the point of taking it back, or
-- moved since the caller looked (the event says how many attempts there were).
local id, at = ARGV[1], now()
local job = load_job(id)
if not job then return {'stale', 'gone'} end
-- Once more: the answer was lost on the way.
if job.state == 'cancelled' then return {'done', 'cancelled'} end
if job.state ~= 'queued' or job.attempts ~= tonumber(ARGV[2]) then return {'stale', job.state} end
return {'done', 'cancelled', unpack(finish(id, job, at, 'cancelled', ARGV[3], ARGV, 4, {
  log = noted(job.log, at, 'cancelled by its producer'),
}))}
