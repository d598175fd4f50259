-- abandon: queued -> abandoned
-- KEYS: job, alarms
-- ARGV: id, fence seen by the caller, max_attempts, reason, retention_ms, then the event as for
--       tell() in _lib
-- Returns {'done', state} or {'stale', state}
local id, at = ARGV[1], now()
local job = load_job(id)
if not job then return {'stale', 'gone'} end
local spent = job.deadline_at <= at or job.attempts >= tonumber(ARGV[3])
local seen = job.fence == tonumber(ARGV[2])
if not seen or job.state ~= 'queued' or not spent or job.unproved ~= 0 then return {'stale', job.state} end
finish(id, job, at, 'abandoned', ARGV[5], ARGV, 6, {log = noted(job.log, at, 'abandoned: ' .. ARGV[4])})
return {'done', 'abandoned'}
