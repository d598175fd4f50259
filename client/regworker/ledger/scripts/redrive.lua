-- redrive: abandoned -> unknown
-- KEYS: job, alarms
-- ARGV: id, payload, deadline_ms, ticket, actor, fingerprint...
-- Returns {'done', state}, {'stale', state} or {'conflict', state}. The payload was erased at the
-- job's end, so its producer sends it again, with the same key and the same content. A lookup comes
-- before any call: what was proved then may have changed since.
local id, at = ARGV[1], now()
local job, forgotten = load_job(id, 'forgotten_at')
if not job then return {'stale', 'gone'} end
if forgotten then return {'stale', 'forgotten'} end
local known = false
for i = 6, #ARGV do known = known or same(job.fingerprint, ARGV[i]) end
if not known then return {'conflict', job.state} end
-- A repeat: the first answer was lost.
if redis.call('HGET', KEYS[1], 'ticket') == ARGV[4] then
  write_again()
  return {'done', job.state}
end
if job.state ~= 'abandoned' then return {'stale', job.state} end
record_act(ARGV[5], 'job.redrive', id, 'abandoned', 'unknown')
redis.call('PERSIST', KEYS[1])
redis.call('HDEL', KEYS[1], 'finished_at')
-- Readers know the values that its end omitted.
for name in pairs(USUAL) do redis.call('HSET', KEYS[1], name, job[name]) end
set(id, job, {
  state = 'unknown', ticket = ARGV[4], payload = ARGV[2], fingerprint = ARGV[6], attempts = 0, asks = 0, wakes = 0,
  due_at = 0, reopened = job.reopened + 1, unknowns = job.unknowns + 1, settle_until = at, deadline_at = at + tonumber(ARGV[3]),
  log = noted(job.log, at, 'redriven: the worker asks first'),
})
count('redriven')
wake_now(id, job.lane, at)
return {'done', 'unknown'}
