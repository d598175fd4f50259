-- claim: queued -> calling; calling -> unknown; unknown -> unknown
-- KEYS: job, alarms
-- ARGV: id, token, worker, lease_ms, settle_ms, max_attempts, chance (0..1), probe_ms
-- Returns {'call' | 'ask', at, lost, job...}   the lease is held, nothing has left yet
--         {'spent', at, '', job...}            the job is to be abandoned: deadline or attempts
--         {'later', at, why, until}            not now; its alarm is set
--         {'over', at, state}                  nothing to do
-- lost: that the worker before died, or hung, in the middle of its call; or ''. job: what an attempt
-- needs of the record, in the order in which `granted` has it.
local id, token, at = ARGV[1], ARGV[2], now()
local lease, settle_ms = tonumber(ARGV[4]), tonumber(ARGV[5])
local job = load_job(id)

local function later(why, till, fields)
  if fields then set(id, job, fields) end
  -- A job that waits past its deadline is looked at then, to be abandoned.
  if job.state == 'queued' then till = math.min(till, job.deadline_at) end
  alarm(id, till)
  return {'later', at, why, till}
end

local function granted(verdict)
  -- By the timeline, where it was noted right before this claim: also when the claim is repeated.
  local lost = job.state == 'unknown'
    and job.log:match('\n%d+ (unknown: the lease of [^\n]*)\n[^\n]*\n$')
  return {verdict, at, lost or '', job.state, job.provider, job.account, job.lane, job.fence,
    job.attempts, job.unknowns, job.asks, job.accepted_at, job.deadline_at, job.lease_until,
    job.settle_until, job.why, job.if_exists, job.reply_to, job.metadata,
    unpack(redis.call('HMGET', KEYS[1], 'key', 'trace', 'payload'))}
end

-- No slot is booked further ahead than this, or a backlog would book hours of them, and whoever is
-- live would wait behind bulk. Long enough that a wake-up for the next slot arrives in time.
local AHEAD = {live = 10000, bulk = 2000}

-- Whether the account lets one more call through; 'why' and 'until' where it doesn't.
local function gate()
  local account, inflight, waiting = account_keys(job)
  local a = table_of(redis.call('HGETALL', account))
  local held = push_of(job.wakes)
  local probing = a.breaker == 'open'
  local function wait_for_place()
    -- Live before bulk, then first come first served; leave() passes a place on, and an operator
    -- who resumes the account lets all go.
    local rank = (job.lane == 'bulk' and RANK or 0) + job.accepted_at
    redis.call('ZADD', waiting, rank, id)
  end
  local closed = a.paused == '1' and 'paused' or a.breaker == 'refused' and 'refused'
  if closed then
    wait_for_place()
    return closed, at + held
  end
  if probing then
    local retry_at = tonumber(a.retry_at)
    if retry_at > at then
      wait_for_place()
      -- Spread over as long again, or all jobs come back in the millisecond it closes.
      return 'breaker', retry_at + math.floor((retry_at - at) * tonumber(ARGV[7]))
    end
  end
  local cap, taken = tonumber(a.max_in_flight or '0'), redis.call('ZCARD', inflight)
  if taken + 1 >= cap then
    -- Those that ran out count no more.
    taken = taken - redis.call('ZREMRANGEBYSCORE', inflight, '-inf', at)
  end
  if cap > 0 and taken >= cap and not redis.call('ZSCORE', inflight, id) then
    wait_for_place()
    return 'full', at + held
  end
  local interval = tonumber(a.interval or '0')
  if interval > 0 and job.slot_at == 0 then
    -- GCRA: the slot is reserved here, so nobody polls for one.
    local tat = math.max(tonumber(a.tat or '0'), at)
    local slot = math.ceil(tat - tonumber(a.burst))
    local ahead = AHEAD[job.lane] or AHEAD.bulk
    if slot - at > ahead then
      wait_for_place()
      return 'pace', math.max(at + held, slot - ahead)
    end
    redis.call('HSET', account, 'tat', string.format('%.3f', tat + interval))
    redis.call('ZREM', waiting, id)
    if slot > at then return 'pace', slot, {slot_at = slot} end
  end
  if probing then
    redis.call('HSET', account, 'retry_at', at + tonumber(ARGV[8]))
  end
  taken = taken + redis.call('ZADD', inflight, at + lease, id)
  if redis.call('EXISTS', waiting) == 1 then
    redis.call('ZREM', waiting, id)
    if cap == 0 or taken < cap then
      -- Room for one more: a place ran out, or whom it was passed to had no use for it.
      local first = redis.call('ZPOPMIN', waiting)
      if first[1] then alarm(first[1], at) end
    end
  end
end

if not job then
  redis.call('ZREM', KEYS[2], id)
  return {'over', at, 'gone'}
end
-- The same claim once more: the answer to it was lost on the way.
if job.token == token and job.lease_until > at then
  return granted(job.state == 'calling' and 'call' or 'ask')
end
if job.lease_until > at then return {'later', at, 'leased', job.lease_until} end
if job.state == 'calling' then
  -- The lease ran out while calling. The request may have left up to its last moment. A new
  -- fence, so that the dead worker's decision, should it come, is seen to be stale.
  local lost = redis.call('HGET', KEYS[1], 'leased_by') or '?'
  set(id, job, {
    state = 'unknown', fence = job.fence + 1, unknowns = job.unknowns + 1, asks = 0,
    settle_until = job.lease_until + settle_ms, lease_until = 0, token = '',
    log = noted(job.log, at, 'unknown: the lease of ' .. lost .. ' ran out'),
  })
  local woken = leave(id, job, at, 'calling')
  if woken then alarm(woken, at) end
end
if job.state ~= 'queued' and job.state ~= 'unknown' then return {'over', at, job.state} end
if job.state == 'queued' then
  if job.deadline_at <= at or job.attempts >= tonumber(ARGV[6]) then return granted('spent') end
end
if job.due_at > at then return later('due', job.due_at) end
if job.slot_at > at then return later('pace', job.slot_at) end
local why, till, fields = gate()
if why then
  fields = fields or {}
  fields.wakes, fields.why = job.wakes + 1, why
  return later(why, till, fields)
end

local asking = job.state == 'unknown'
set(id, job, {
  state = asking and 'unknown' or 'calling', token = token, leased_by = ARGV[3],
  fence = job.fence + 1, lease_until = at + lease, claimed_at = at, wakes = 0, slot_at = 0,
  due_at = 0, why = '', attempts = job.attempts + (asking and 0 or 1),
  log = noted(job.log, at, (asking and 'asking by ' or 'calling by ') .. ARGV[3]),
})
alarm(id, at + lease)
return granted(asking and 'ask' or 'call')
