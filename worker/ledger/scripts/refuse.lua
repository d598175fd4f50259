-- refuse: (no edge) tell that what came in by an asynchronous door was not taken
-- KEYS: ticket, jobs, configured
-- ARGV: subject, ticket_ms, the entry of the job stream that it came by ('' by another door), then
--       the event as tell() in _lib takes it
-- Returns {1, member...}, or {0} where it was told before: its entry is gone, or, by another door,
-- its ticket is there. Endpoints that nobody has configured are left out; where none is left, it is
-- told on `results`. No job's record is touched: the key may be another job's.
local at, entry = now(), ARGV[3]
if entry == '' then
  if redis.call('EXISTS', KEYS[1]) == 1 then return {0} end
elseif #redis.call('XRANGE', KEYS[2], entry, entry) == 0 then
  return {0}
end
local event = {ARGV[4], ARGV[5], ARGV[6], ARGV[7]}
for i = 8, #ARGV do
  if redis.call('SISMEMBER', KEYS[3], 'endpoint:' .. ARGV[i]) == 1 then event[#event + 1] = ARGV[i] end
end
if not event[5] then event[5] = 'results' end
-- Told first: a script that fails keeps what it has written.
local members = tell(ARGV[1], at, event, 1)
if entry == '' then
  redis.call('SET', KEYS[1], '1', 'PX', ARGV[2])
else
  handled(entry)
end
redis.call('HINCRBY', PREFIX .. 'stats', 'refused', 1)
return {1, unpack(members)}
