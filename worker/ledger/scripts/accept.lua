-- accept: -> queued
-- KEYS: job, alarms, configured, jobs
-- ARGV: id, ticket, deadline_ms (0: at deadline_at), deadline_at, the entry of the job stream that
--       it came by ('' by another door), n fingerprints, fingerprint..., m names that must be
--       configured, name..., field, value, ... of the record
-- Returns {'accepted' | 'repeat' | 'conflict', state, accepted_at} or {'unconfigured', name...}.
-- The first fingerprint is kept; a repeat matches under any key of the ring. `ticket` tells a
-- client's own retry, its first answer lost, from a repeat. The entry is done with in the moment in
-- which the job is in; one that is refused stays, until `refuse` has told so.
local id, at = ARGV[1], now()
local job = load_job(id)
local n = tonumber(ARGV[6])
local m = tonumber(ARGV[7 + n])
if job then
  if job.ticket == ARGV[2] then return {'accepted', job.state, job.accepted_at} end
  for i = 1, n do
    if ARGV[6 + i] == job.fingerprint then
      if ARGV[5] ~= '' then handled(ARGV[5]) end
      return {'repeat', job.state, job.accepted_at}
    end
  end
  return {'conflict', job.state, job.accepted_at}
end
local missing = {'unconfigured'}
for i = 8 + n, 7 + n + m do
  if redis.call('SISMEMBER', KEYS[3], ARGV[i]) == 0 then missing[#missing + 1] = ARGV[i] end
end
if missing[2] then return missing end
local wait = tonumber(ARGV[3])
local deadline = wait > 0 and at + wait or tonumber(ARGV[4])
redis.call('HSET', KEYS[1], unpack(ARGV, 8 + n + m))
set(id, {state = 'queued', ticket = ARGV[2], fingerprint = ARGV[7], accepted_at = at,
         deadline_at = deadline}, {lane = redis.call('HGET', KEYS[1], 'lane'), accepted_at = at})
note(id, {}, at, 'accepted')
alarm(id, at + FIRST_PUSH)
redis.call('HINCRBY', PREFIX .. 'stats', 'accepted', 1)
if ARGV[5] ~= '' then handled(ARGV[5]) end
return {'accepted', 'queued', at}
