-- refuse: (no edge) publish that a request of an asynchronous entry point was refused
-- KEYS: ticket, jobs, configured
-- ARGV: subject, ticket_ms, its entry of the job stream ('' by another entry point), then the event
--       as for tell() in _lib
-- Returns 1, or 0 if it was published before: its entry is gone, or, by another
-- entry point, its ticket exists. Endpoints that are not configured are omitted; if none is left,
-- it is published on `results`. No job's record is changed: the key may be another job's.
-- 2: not published, since a flood of refusals must not fill streams and queues: BURST of them are
-- published at once, as for an import that is all wrong, and then one every INTERVAL ms (GCRA).
-- They are counted.
local BURST, INTERVAL, BUDGET = 5000, 1000, PREFIX .. 'refusals'
local at, entry = now(), ARGV[3]
if entry == '' then
  if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
elseif #redis.call('XRANGE', KEYS[2], entry, entry) == 0 then
  return 0
end
count('refused')
local spent = math.max(at, tonumber(redis.call('GET', BUDGET) or 0)) + INTERVAL
if spent - at > BURST * INTERVAL then
  count('refused_unreported')
  if entry ~= '' then handled(entry) end
  return 2
end
redis.call('SET', BUDGET, string.format('%.0f', spent), 'PX', spent - at)
local event = {unpack(ARGV, 4, 8)}
for i = 9, #ARGV do
  if redis.call('SISMEMBER', KEYS[3], 'endpoint:' .. ARGV[i]) == 1 then event[#event + 1] = ARGV[i] end
end
if not event[6] then event[6] = 'results' end
-- Published first: a script that fails keeps what it has written.
tell(ARGV[1], at, event, 1)
if entry == '' then
  redis.call('SET', KEYS[1], '1', 'PX', ARGV[2])
else
  handled(entry)
end
return 1
