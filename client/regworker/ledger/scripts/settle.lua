-- settle: calling -> registered | rejected | queued | unknown | review; unknown -> registered | rejected | queued | unknown | review; queued | review -> registered
-- KEYS: job, alarms
-- ARGV: id, fence, verdict, reason, delay_ms, settle_ms, spends (0 | 1), health, threshold,
--       pause_ms, retention_ms, then the event as for tell() in _lib, if there is one
-- verdict: registered | rejected | retry | unknown | taken (unknown, but refused because the
--       customer exists) | absent | unproved (absent, but only by the login) | unresolvable
-- health: ok | fault | refused | refused by status | '' (about the account)
-- Returns {'done', state, until} or {'stale', state}; state: of a corrected job, to what
local id, fence, verdict, reason = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local delay, settle_ms = tonumber(ARGV[5]), tonumber(ARGV[6])
local at = now()
local by_status = ARGV[8] == 'refused by status'
local job, corrected = load_job(id, 'corrected')
if not job then return {'stale', 'gone'} end

local function read_breaker(key) return redis.call('HMGET', key, 'breaker', 'failures') end

local function health()
  local account = account_keys(job)
  if ARGV[8] == 'ok' then
    local was = once(account, read_breaker)
    -- Only the operator can close this breaker, whatever the results of other calls.
    if was[1] ~= 'refused' and (was[1] == 'open' or (was[2] and was[2] ~= '0')) then
      redis.call('HSET', account, 'breaker', 'closed', 'failures', '0', 'reason', '')
      learn(account)
    end
  elseif ARGV[8] == 'fault' then
    learn(account)
    local failures = increase(account, 'failures', 1)
    if failures >= tonumber(ARGV[9]) and redis.call('HMGET', account, 'breaker')[1] ~= 'refused' then
      redis.call('HSET', account, 'breaker', 'open', 'reason', reason,
        'retry_at', at + tonumber(ARGV[10]))
    end
  elseif ARGV[8] == 'refused' or by_status then
    learn(account)
    redis.call('HSET', account, 'breaker', 'refused', 'reason', reason,
      'refused_at', at)
  end
end

local holder = fence == job.fence and job.token ~= ''
  and (job.state == 'calling' or job.state == 'unknown')
local open = job.state == 'queued' or job.state == 'calling' or job.state == 'unknown'
  or job.state == 'review'

-- The same settle once more: the answer to it was lost on the way.
local settled = ARGV[2] .. ' ' .. verdict
if job.settled == settled then return {'done', job.state, 0} end
if not open or not (holder or verdict == 'registered') then
  if verdict == 'registered' then count('late_facts') end
  return {'stale', corrected or job.state}
end

-- What nothing but a result or a person ends: see `unproved` in records.py.
local TAKEN = 2
local unproved = verdict == 'unproved' and 1 or 0
if verdict == 'taken' or job.unproved == TAKEN then unproved = TAKEN end
if verdict == 'unproved' then verdict = 'absent' elseif verdict == 'taken' then verdict = 'unknown' end
-- Only a lookup can prove absence.
if job.state == 'calling' and verdict == 'absent' then verdict = 'unknown' end

local was = job.state
local attempts = job.attempts
local refusals = job.refusals + (by_status and 1 or 0)
if was == 'calling' and ARGV[7] == '0' then attempts = attempts - 1 end

-- Not the end: the lease is over, and the record says why.
local function go_on(text, changes)
  changes.settled, changes.token, changes.lease_until = settled, '', 0
  changes.log = noted(job.log, at, text)
  set(id, job, changes)
end

-- Update the account, and pass the job's place on to the next.
local function done(till)
  health()
  leave(id, job, at, was)
  return {'done', job.state, till}
end

-- The event goes first: a script that fails (the stream's key may have a wrong type) keeps what it
-- has written, and a job must not look settled without its event.
local because = reason ~= '' and ': ' .. reason or ''
if verdict == 'registered' or verdict == 'rejected' then
  local log = job.log
  -- A fact from a stale worker: the present lease holder will find the job ended.
  if not holder then log = noted(log, at, 'a late answer: registered') end
  finish(id, job, at, verdict, ARGV[11], ARGV, 12, {
    settled = settled, log = noted(log, at, verdict .. because),
  })
  return done(0)
end
if verdict == 'unresolvable' then
  tell(id, at, ARGV, 12, job)
  go_on('review' .. because, {state = 'review', why = reason, event = ARGV[16]})
  no_alarm(id)
  redis.call('ZADD', REVIEWS, at, id)
  count('review')
  return done(0)
end

if verdict == 'absent' and job.claimed_at < job.settle_until then
  -- Too early to believe: the request may still be carried out. Look up again when it cannot be.
  verdict, reason = 'unknown', 'not there yet: ' .. reason
end

if verdict == 'unknown' then
  local till, asks, unknowns, settle_until = at, 0, job.unknowns, job.settle_until
  if was == 'calling' then
    unknowns, settle_until = unknowns + 1, at + math.max(settle_ms, delay)
  else
    asks, till = job.asks + 1, at + delay
    if at < settle_until and till > settle_until then till = settle_until end
  end
  go_on('unknown: ' .. reason, {
    state = 'unknown', unknowns = unknowns, attempts = attempts, asks = asks, why = reason,
    settle_until = settle_until, due_at = till, refusals = refusals,
    unproved = unproved == TAKEN and TAKEN or job.unproved,
  })
  alarm(id, till)
  return done(till)
end

-- retry, or absent and believed: provably without effect
if job.state == 'unknown' and verdict ~= 'absent' then
  -- The lookup failed; an unknown job stays unknown. It may have been asked to wait: that counts
  -- more than the end of the settle delay.
  local made = ARGV[7] == '1'
  go_on((made and 'unknown: ' or 'unknown: not asked: ') .. reason, {
    why = reason, asks = job.asks + tonumber(ARGV[7]), due_at = at + delay, refusals = refusals,
  })
  alarm(id, at + delay)
  return done(at + delay)
end
local till = verdict == 'absent' and at or at + delay
if verdict == 'retry' then unproved = job.unproved end
go_on('queued: ' .. reason, {
  state = 'queued', due_at = till, attempts = attempts, why = reason, unproved = unproved,
  refusals = refusals,
})
alarm(id, math.min(till, math.max(job.deadline_at, at)))
return done(till)
