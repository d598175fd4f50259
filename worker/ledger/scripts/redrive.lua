-- redrive: abandoned -> unknown
-- KEYS: job, alarms
-- ARGV: id, payload, deadline_ms, ticket, fingerprint...
-- Returns {'done', state}, {'stale', state} or {'conflict', state}. The payload was erased at the
-- job's end, so its producer brings it once more, under the same key and with the same content.
-- The provider is asked before anything is sent: what was proved then may have changed since.
local id, at = ARGV[1], now()
local job = load_job(id)
if not job then return {'stale', 'gone'} end
local known = false
for i = 5, #ARGV do known = known or same(job.fingerprint, ARGV[i]) end
if not known then return {'conflict', job.state} end
-- Once more: the answer was lost on the way.
if redis.call('HGET', KEYS[1], 'ticket') == ARGV[4] then return {'done', job.state} end
if job.state ~= 'abandoned' then return {'stale', job.state} end
redis.call('PERSIST', KEYS[1])
redis.call('HDEL', KEYS[1], 'finished_at')
-- What its end left out, others read by itself.
for name in pairs(USUAL) do redis.call('HSET', KEYS[1], name, job[name]) end
set(id, job, {
  state = 'unknown', ticket = ARGV[4], payload = ARGV[2], fingerprint = ARGV[5], attempts = 0, asks = 0, wakes = 0,
  due_at = 0, unknowns = job.unknowns + 1, settle_until = at, deadline_at = at + tonumber(ARGV[3]),
  log = noted(job.log, at, 'redriven: asked after first'),
})
redis.call('HINCRBY', PREFIX .. 'stats', 'redriven', 1)
alarm(id, at)
return {'done', 'unknown'}
