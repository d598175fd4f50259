-- accept: -> queued
-- KEYS: job, alarms, configured, jobs
-- ARGV: id, ticket, deadline_ms (0: at deadline_at), deadline_at, the entry of the job stream that
--       it came by ('' by another door), provider, account, key, lane, if_exists, reply_to and
--       metadata as JSON, payload, trace, n fingerprints, fingerprint..., endpoint...
-- Returns {'accepted' | 'repeat' | 'conflict', state, accepted_at} or {'unconfigured', name...}.
-- The first fingerprint is kept; a repeat matches under any key of the ring. `ticket` tells a
-- client's own retry, its first answer lost, from a repeat. The entry is done with in the moment in
-- which the job is in; one that is refused stays, until `refuse` has told so.
local id, at = ARGV[1], now()
-- The fingerprints and, behind them, the endpoints.
local FIRST, n = 16, tonumber(ARGV[15])
local old = redis.call('HMGET', KEYS[1], 'state', 'accepted_at', 'ticket', 'fingerprint')
if old[1] then
  local state, accepted_at = old[1], tonumber(old[2])
  if old[3] == ARGV[2] then return {'accepted', state, accepted_at} end
  for i = FIRST, FIRST + n - 1 do
    if same(old[4], ARGV[i]) then
      if ARGV[5] ~= '' then handled(ARGV[5]) end
      return {'repeat', state, accepted_at}
    end
  end
  return {'conflict', state, accepted_at}
end
local names, missing = {'account:' .. ARGV[6] .. ':' .. ARGV[7]}, {'unconfigured'}
for i = FIRST + n, #ARGV do names[#names + 1] = 'endpoint:' .. ARGV[i] end
for i, found in ipairs(redis.call('SMISMEMBER', KEYS[3], unpack(names))) do
  if found == 0 then missing[#missing + 1] = names[i] end
end
if missing[2] then return missing end
local wait = tonumber(ARGV[3])
-- One wake already: that which its producer sends now. In a crowded lane another would only double
-- the backlog.
set(id, {due_at = 0}, {
  state = 'queued', ticket = ARGV[2], fingerprint = ARGV[FIRST], accepted_at = at,
  deadline_at = wait > 0 and at + wait or tonumber(ARGV[4]), log = noted('', at, 'accepted'),
  provider = ARGV[6], account = ARGV[7], key = ARGV[8], lane = ARGV[9], if_exists = ARGV[10],
  reply_to = ARGV[11], metadata = ARGV[12], payload = ARGV[13], trace = ARGV[14], wakes = 1,
})
alarm(id, at + FIRST_PUSH)
redis.call('HINCRBY', PREFIX .. 'stats', 'accepted', 1)
if ARGV[5] ~= '' then handled(ARGV[5]) end
return {'accepted', 'queued', at}
