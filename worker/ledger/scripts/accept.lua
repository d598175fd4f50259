-- accept: -> queued
-- KEYS: job, alarms, configured
-- ARGV: id, ticket, deadline_ms (0: at deadline_at), deadline_at, n fingerprints, fingerprint...,
--       m names that must be configured, name..., field, value, ... of the record
-- Returns {'accepted' | 'repeat' | 'conflict', state, accepted_at} or {'unconfigured', name...}.
-- The first fingerprint is kept; a repeat matches under any key of the ring. `ticket` tells a
-- client's own retry, its first answer lost, from a repeat.
local id, at = ARGV[1], now()
local job = load_job(id)
local n = tonumber(ARGV[5])
local m = tonumber(ARGV[6 + n])
if job then
  if job.ticket == ARGV[2] then return {'accepted', job.state, job.accepted_at} end
  for i = 1, n do
    if ARGV[5 + i] == job.fingerprint then return {'repeat', job.state, job.accepted_at} end
  end
  return {'conflict', job.state, job.accepted_at}
end
local missing = {'unconfigured'}
for i = 7 + n, 6 + n + m do
  if redis.call('SISMEMBER', KEYS[3], ARGV[i]) == 0 then missing[#missing + 1] = ARGV[i] end
end
if missing[2] then return missing end
local wait = tonumber(ARGV[3])
local deadline = wait > 0 and at + wait or tonumber(ARGV[4])
redis.call('HSET', KEYS[1], unpack(ARGV, 7 + n + m))
set(id, {state = 'queued', ticket = ARGV[2], fingerprint = ARGV[6], accepted_at = at,
         deadline_at = deadline})
note(id, {}, at, 'accepted')
alarm(id, at + FIRST_PUSH)
redis.call('HINCRBY', PREFIX .. 'stats', 'accepted', 1)
return {'accepted', 'queued', at}
