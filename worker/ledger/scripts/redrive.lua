-- redrive: abandoned -> unknown
-- KEYS: job, alarms
-- ARGV: id, payload, deadline_ms, ticket, fingerprint...
-- Returns {'done', state}, {'stale', state} or {'conflict', state}. The payload was erased at the
-- job's end, so its producer brings it once more, under the same key and with the same content.
-- The provider is asked before anything is sent: what was proved then may have changed since.
local id, at = ARGV[1], now()
local job = load_job(id)
if not job then return {'stale', 'gone'} end
local same = false
local kept = redis.call('HMGET', KEYS[1], 'fingerprint', 'ticket')
for i = 5, #ARGV do same = same or ARGV[i] == kept[1] end
if not same then return {'conflict', job.state} end
-- Once more: the answer was lost on the way.
if kept[2] == ARGV[4] then return {'done', job.state} end
if job.state ~= 'abandoned' then return {'stale', job.state} end
redis.call('PERSIST', KEYS[1])
redis.call('HDEL', KEYS[1], 'finished_at')
set(id, job, {
  state = 'unknown', ticket = ARGV[4], payload = ARGV[2], attempts = 0, asks = 0, wakes = 0,
  due_at = 0, unknowns = job.unknowns + 1, settle_until = at, deadline_at = at + tonumber(ARGV[3]),
  log = noted(job.log, at, 'redriven: asked after first'),
})
redis.call('HINCRBY', PREFIX .. 'stats', 'redriven', 1)
alarm(id, at)
return {'done', 'unknown'}
