-- accept: -> queued
-- KEYS: job, alarms
-- ARGV: id, ticket, deadline_ms (0: at deadline_at), deadline_at, its entry of the job stream (''
--       by another entry point), provider, account, key, lane, if_exists, reply_to and metadata as
--       JSON, payload, trace, the id in base64, the sealing key as workers announce it ('': not
--       checked), the name of its HTTP token ('': none), n fingerprints, fingerprint...,
--       endpoint...
-- Returns {'accepted' | 'repeat' | 'conflict' | 'forgotten', state, accepted_at}, or
-- {'unconfigured', {name...}, {name...}}: the names that no worker has announced, and all announced
-- names. The first word is followed by a space and the ticket, which shows whose answer it is.
-- The first fingerprint is kept; a repeat matches under any key of the ring. `ticket` distinguishes
-- a client's retry after a lost answer from a repeat. The same step removes the entry of an
-- accepted job; that of a refused one stays until `refuse` has published the refusal. The script
-- also wakes a worker, so that callers need not know the broker. A caller could guess a job's
-- content by enqueuing under its key: so after MOST_CONFLICTS in an hour, any content is a
-- conflict, without a comparison, until the hour is over.
local id, at = ARGV[1], now()
local mine = ' ' .. ARGV[2]
-- The fingerprints and, after them, the endpoints.
local FIRST, n = 19, tonumber(ARGV[18])
local MOST_CONFLICTS, HOUR = 20, 3600000
local old = redis.call('HMGET', KEYS[1], 'state', 'accepted_at', 'ticket', 'fingerprint', 'conflicts',
  'forgotten_at')
if old[1] then
  local state, accepted_at = old[1], tonumber(old[2])
  if old[3] == ARGV[2] then
    write_again()
    return {'accepted' .. mine, state, accepted_at}
  end
  -- Its content cannot be compared any more, and a new job could create a second customer.
  if old[6] then return {'forgotten' .. mine, state, accepted_at} end
  local conflicts, since = (old[5] or ''):match('^(%d+) (%d+)$')
  conflicts, since = tonumber(conflicts or 0), tonumber(since or at)
  if at - since >= HOUR then conflicts, since = 0, at end
  if conflicts >= MOST_CONFLICTS then return {'conflict' .. mine, state, accepted_at} end
  for i = FIRST, FIRST + n - 1 do
    if same(old[4], ARGV[i]) then
      if ARGV[5] ~= '' then handled(ARGV[5]) end
      count('again')
      return {'repeat' .. mine, state, accepted_at}
    end
  end
  redis.call('HSET', KEYS[1], 'conflicts', conflicts + 1 .. ' ' .. since)
  count('again')
  return {'conflict' .. mine, state, accepted_at}
end
local names, missing = {'account:' .. ARGV[6] .. ':' .. ARGV[7]}, {}
for i = FIRST + n, #ARGV do names[#names + 1] = 'endpoint:' .. ARGV[i] end
local key = 'key:' .. ARGV[16]
if ARGV[16] ~= '' then names[#names + 1] = key end
local function announced() return redis.call('SMISMEMBER', CONFIGURED, unpack(names)) end
for i, found in ipairs(once(table.concat(names, ' '), announced)) do
  if found == 0 then missing[#missing + 1] = names[i] end
end
if missing[1] then
  local known, keys = redis.call('SMEMBERS', CONFIGURED), false
  for _, name in ipairs(known) do keys = keys or name:sub(1, 4) == 'key:' end
  -- While no worker has announced a key, none is refused.
  if known[1] and not keys and missing[#missing] == key then missing[#missing] = nil end
  for _, name in ipairs(known) do weigh(#name) end
  if missing[1] then return {'unconfigured' .. mine, missing, known} end
end
local wait = tonumber(ARGV[3])
local fresh = {due_at = 0}
for name, usual in pairs(USUAL) do fresh[name] = usual end
-- It has one wake-up already: in a full lane another would only double the backlog.
set(id, fresh, {
  state = 'queued', ticket = ARGV[2], fingerprint = ARGV[FIRST], accepted_at = at,
  deadline_at = wait > 0 and at + wait or tonumber(ARGV[4]), log = noted('', at, 'accepted'),
  provider = ARGV[6], account = ARGV[7], key = ARGV[8], lane = ARGV[9], if_exists = ARGV[10],
  reply_to = ARGV[11], metadata = ARGV[12], payload = ARGV[13], trace = ARGV[14],
  by = ARGV[17],
  wakes = (put(id, ARGV[9], at, ARGV[15])
    or relay(id, ARGV[9], ARGV[9] == 'bulk' and BULK_WAKES or WAKES)) and 1 or 0,
})
alarm(id, at + FIRST_PUSH)
count('accepted')
if ARGV[5] ~= '' then handled(ARGV[5]) end
return {'accepted' .. mine, 'queued', at}
