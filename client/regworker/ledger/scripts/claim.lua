-- claim: queued -> calling; queued -> unknown; calling -> unknown; unknown -> unknown
-- KEYS: job, alarms
-- ARGV: id, token, worker, lease_ms, settle_ms, max_attempts, chance (0..1), probe_ms
-- Returns {'call' | 'ask', at, lost, stray, job...}   the lease is held, nothing was sent yet
--         {'spent', at, '', '', job...}        the job must be abandoned: deadline or attempts
--         {'later', at, why, until}            not now; its alarm is set
--         {'over', at, state}                  nothing to do
-- The first word is followed by a space and the token, which shows whose answer it is.
-- lost: that the previous worker died, or hung, during its call; or ''. job: the record's fields
-- for an attempt, in the order of `granted`. stray: when the account first sent unrequested bytes,
-- or ''.
local id, token, at = ARGV[1], ARGV[2], now()
local mine = ' ' .. token
local lease, settle_ms = tonumber(ARGV[4]), tonumber(ARGV[5])
local job, key, trace, payload = load_job(id, 'key', 'trace', 'payload')

local function later(why, till, fields)
  if fields then set(id, job, fields) end
  -- A job that waits past its deadline is woken then, to be abandoned.
  if job.state == 'queued' then till = math.min(till, job.deadline_at) end
  alarm(id, till)
  return {'later' .. mine, at, why, till}
end

local stray_at

local function granted(verdict)
  -- From the timeline, where it was written right before this claim: also if the claim is repeated.
  local lost = job.state == 'unknown'
    and job.log:match('\n%d+ (unknown: the lease of [^\n]*)\n[^\n]*\n$')
  weigh(#job.metadata + #(payload or ''))
  local unproved = job.state == 'unknown' and math.max(0, job.unproved) or math.abs(job.unproved)
  return {verdict .. mine, at, lost or '', stray_at or '', job.state, job.provider, job.account, job.lane, job.fence,
    job.reopened, job.attempts, job.unknowns, job.asks, job.accepted_at, job.deadline_at, job.lease_until,
    job.settle_until, job.why, unproved, job.refusals, job.if_exists, job.reply_to, job.metadata,
    key, trace, payload}
end

-- The longest time ahead for which a slot is reserved: otherwise a bulk backlog would reserve hours
-- of slots, and live jobs would wait behind it. Long enough for a wake-up for the next slot to
-- arrive in time.
local AHEAD = {live = 10000, bulk = 2000}

local function read_account(key) return table_of(redis.call('HGETALL', key)) end

-- Whether the account allows one more call; 'why' and 'until' if not.
local function gate()
  local account, inflight, waiting = account_keys(job)
  local a = once(account, read_account)
  stray_at = a.stray_at
  local held = push_of(job.wakes)
  local probing = a.breaker == 'open'
  local function wait_for_place()
    -- Live before bulk, then in order of arrival; leave() passes a place on, and an operator who
    -- resumes the account releases all jobs.
    local rank = (job.lane == 'bulk' and RANK or 0) + job.accepted_at
    redis.call('ZADD', waiting, rank, id)
    learn(waiting)
  end
  local paused, until_ = pause_of(a.paused, a.paused_until, at)
  local closed = paused and 'paused' or a.breaker == 'refused' and 'refused'
  if closed then
    wait_for_place()
    -- The end of a pause wakes no job by itself: each job's alarm is set to it at the latest.
    return closed, paused and until_ > 0 and math.min(at + held, until_) or at + held
  end
  if probing then
    local retry_at = tonumber(a.retry_at or 0) or 0
    if retry_at > at then
      wait_for_place()
      -- Spread over as long again; otherwise all jobs return in the millisecond when it closes.
      return 'breaker', retry_at + math.floor((retry_at - at) * tonumber(ARGV[7]))
    end
  end
  local cap, taken = tonumber(a.max_in_flight) or 0, size_of(inflight)
  if taken + 1 >= cap then
    -- Expired ones no longer count.
    taken = taken - redis.call('ZREMRANGEBYSCORE', inflight, '-inf', at)
    learn(inflight, taken)
  end
  if cap > 0 and taken >= cap and not redis.call('ZSCORE', inflight, id) then
    wait_for_place()
    return 'full', at + held
  end
  -- An operator's pace overrides the setting's.
  local interval = tonumber(a.own_interval or a.interval) or 0
  if interval > 0 and job.slot_at == 0 then
    -- GCRA: the slot is reserved here, so no job polls for one.
    local tat = math.max(tonumber(a.tat) or 0, at)
    local slot = math.ceil(tat - (tonumber(a.own_burst or a.burst or 0) or 0))
    local ahead = AHEAD[job.lane] or AHEAD.bulk
    if slot - at > ahead then
      wait_for_place()
      return 'pace', math.max(at + held, slot - ahead)
    end
    a.tat = string.format('%.3f', tat + interval)
    redis.call('HSET', account, 'tat', a.tat)
    redis.call('ZREM', waiting, id)
    learn(waiting)
    if slot > at then return 'pace', slot, {slot_at = slot} end
  end
  if probing then
    a.retry_at = at + tonumber(ARGV[8])
    redis.call('HSET', account, 'retry_at', a.retry_at)
  end
  taken = taken + redis.call('ZADD', inflight, at + lease, id)
  learn(inflight, taken)
  if size_of(waiting) > 0 then
    redis.call('ZREM', waiting, id)
    learn(waiting)
    if cap == 0 or taken < cap then
      -- There is room for one more: a place expired, or the job that got it did not need it.
      local first = redis.call('ZPOPMIN', waiting)
      if first[1] then alarm(first[1], at) end
    end
  end
end

if not job then
  no_alarm(id)
  return {'over' .. mine, at, 'gone'}
end
-- A repeat of the same claim: the first answer was lost.
if job.token == token and job.lease_until > at then
  stray_at = redis.call('HMGET', (account_keys(job)), 'stray_at')[1]
  write_again()
  return granted(job.state == 'calling' and 'call' or 'ask')
end
if job.lease_until > at then return {'later' .. mine, at, 'leased', job.lease_until} end
local doubted_at, doubted = doubt(job)
-- Above every fence that a lost claim may have had, so that its holder counts as stale.
local function next_fence() return math.max(job.fence + 1, doubted_at) end
if job.state == 'calling' then
  -- The lease expired during the call. The request may have been sent up to its last moment. A new
  -- fence makes the dead worker's decision stale, if it comes.
  local lost = redis.call('HMGET', KEYS[1], 'leased_by')[1] or '?'
  set(id, job, {
    state = 'unknown', fence = next_fence(), unknowns = job.unknowns + 1, asks = 0,
    settle_until = job.lease_until + settle_ms, lease_until = 0, token = '',
    log = noted(job.log, at, 'unknown: the lease of ' .. lost .. ' ran out'),
  })
  leave(id, job, at, 'calling')
end
if doubted and (job.state == 'queued' or job.state == 'unknown') then
  -- A lost claim may be held until its lease would end, and its request carried out later. An
  -- unknown job, too, may have been found absent and sent again, and that be lost.
  set(id, job, {
    state = 'unknown', unknowns = job.unknowns + (job.state == 'queued' and 1 or 0), asks = 0, due_at = 0, slot_at = 0,
    settle_until = math.max(job.settle_until, doubted_at + lease + settle_ms), epoch = doubted_at,
    log = noted(job.log, at, 'unknown: the ledger may have forgotten a call'),
  })
end
if job.state ~= 'queued' and job.state ~= 'unknown' then return {'over' .. mine, at, job.state} end
if job.state == 'queued' then
  if job.deadline_at <= at or job.attempts >= tonumber(ARGV[6]) then
    if job.unproved == 0 then return granted('spent') end
    -- Only the login has denied that the customer exists: it is asked once more, and then a person.
    set(id, job, {
      state = 'unknown', asks = 0, due_at = 0, slot_at = 0,
      log = noted(job.log, at, 'unknown: the customer may exist, and the job may not be sent again'),
    })
  end
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
-- Only look-ups after the deadline count towards a review (see `asked` in decision.py).
local late = math.max(math.min(job.deadline_at, job.settle_until + 604800000), job.settle_until)
local asks = job.claimed_at <= late and at > late and 0 or job.asks
set(id, job, {
  state = asking and 'unknown' or 'calling', token = token, leased_by = ARGV[3],
  fence = next_fence(), epoch = doubted_at, lease_until = at + lease, claimed_at = at, wakes = 0, slot_at = 0,
  due_at = 0, why = '', asks = asks, attempts = job.attempts + (asking and 0 or 1),
  log = noted(job.log, at, (asking and 'asking by ' or 'calling by ') .. ARGV[3]),
})
alarm(id, at + lease)
return granted(asking and 'ask' or 'call')
