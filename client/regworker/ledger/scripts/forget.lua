-- forget: (no edge) erase the stored data of a finished job, except its id, its state, its account
-- KEYS: job, alarms, plain
-- ARGV: id, '<when it ended> <to what it was corrected>' as the caller saw it ('': it had no
--       record), actor, n entries of streams, then stream, entry for each, then the member of each
--       delivery
-- Returns {'done', state ('': it had no record), entries and deliveries erased, of these not
-- delivered}, or {'stale', state}: not finished, or changed since the caller read it.
-- The id is a hash of account and key. What stays keeps the record's time to live, so that the key
-- creates no second customer meanwhile (`accept`). The servers' files are rewritten after this, as
-- after plain input.
local id, at = ARGV[1], now()
local job = redis.call('HMGET', KEYS[1], 'state', 'provider', 'account', 'finished_at', 'accepted_at',
  'forgotten_at', 'corrected')
local state = job[1] or ''
local seen = job[1] and (job[4] or '') .. ' ' .. (job[7] or '') or ''
if seen ~= ARGV[2] or (job[1] and not job[4]) then return {'stale', state} end

local first, entries = 5 + 2 * tonumber(ARGV[4]), 0
for i = 5, first - 1, 2 do entries = entries + redis.call('XDEL', ARGV[i], ARGV[i + 1]) end
local deliveries, undelivered = 0, 0
-- Before any of them passes its place on: not to another one that is erased.
for i = first, #ARGV do
  local endpoint = redis.call('HMGET', delivery_key(ARGV[i]), 'endpoint')[1]
  if endpoint then
    local _, _, _, line = endpoint_keys(endpoint)
    redis.call('ZREM', line, ARGV[i])
  end
end
for i = first, #ARGV do
  local member = ARGV[i]
  local d = redis.call('HMGET', delivery_key(member), 'state', 'endpoint')
  if d[1] then
    deliveries = deliveries + 1
    if d[1] == 'pending' then undelivered = undelivered + 1 end
    vacate(member, d[2], at)
    local _, pending = endpoint_keys(d[2])
    for _, key in ipairs({KEYS[2], pending, DEAD}) do redis.call('ZREM', key, member) end
    redis.call('DEL', delivery_key(member))
  end
end

local fresh = job[1] and not job[6]
if fresh then
  local name = state .. ':' .. job[2] .. ':' .. job[3]
  local from, ended = string.format('%.0f', job[4]), PREFIX .. 'ended:' .. name
  for _, entry in ipairs(peek('XRANGE', ended, from, '+', 'COUNT', 1000) or {}) do
    if entry[2][2] == id then redis.call('XDEL', ended, entry[1]) end
  end
  local left = redis.call('PTTL', KEYS[1])
  redis.call('DEL', KEYS[1])
  -- No fingerprint of a repeat equals ':'.
  redis.call('HSET', KEYS[1], 'state', state, 'provider', job[2], 'account', job[3], 'key', '',
    'accepted_at', job[5] or job[4], 'finished_at', job[4], 'fingerprint', ':', 'forgotten_at', at)
  if left > 0 then redis.call('PEXPIRE', KEYS[1], left) end
end
if not fresh and entries + deliveries == 0 then
  -- A repeat after a lost answer, or there is nothing left.
  write_again()
  return {'done', state, 0, 0, 0}
end
redis.call('HSET', KEYS[3], 'at', at)
redis.call('HSETNX', KEYS[3], 'since', at)
record_act(ARGV[3], 'job.forget', id, state, 'forgotten')
return {'done', state, entries, deliveries, undelivered}
