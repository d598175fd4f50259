-- cancel: queued -> cancelled
-- KEYS: job, alarms
-- ARGV: id, attempts seen by the caller, retention_ms, actor ('': its producer), then the event as
--       for tell() in _lib
-- Returns {'done', state, id}, or {'stale', state, id}: too late to cancel, or changed since the
-- caller read it (the event contains the number of attempts).
local id, at = ARGV[1], now()
local job = load_job(id)
if not job then return {'stale', 'gone', id} end
-- A repeat: the first answer was lost.
if job.state == 'cancelled' then
  write_again()
  return {'done', 'cancelled', id}
end
local _, doubted = doubt(job)
-- Also if only the login has denied that the customer exists.
if (doubted or job.unproved ~= 0) and job.state == 'queued' then return {'stale', 'unknown', id} end
if job.state ~= 'queued' or job.attempts ~= tonumber(ARGV[2]) then return {'stale', job.state, id} end
local by = ARGV[4] ~= '' and name_of(ARGV[4]) or 'its producer'
finish(id, job, at, 'cancelled', kept_for(ARGV[3]), ARGV, 5, {
  log = noted(job.log, at, 'cancelled by ' .. by),
})
record_act(ARGV[4], 'job.cancel', id, 'queued', 'cancelled')
return {'done', 'cancelled', id}
