-- settle: calling -> registered | rejected | queued | unknown | review; unknown -> registered | rejected | queued | unknown | review; queued | review -> registered
-- KEYS: job, alarms
-- ARGV: id, fence, verdict, reason, delay_ms, settle_ms, spends (0 | 1), health, threshold,
--       pause_ms, retention_ms, then the event as publish() in _lib takes it, where there is one
-- verdict: registered | rejected | retry | unknown | absent | unresolvable
-- health: ok | fault | refused | '' (what it says of the account)
-- Returns {'done', state, until, wake or '', its lane, member...}  or {'stale', state}
local id, fence, verdict, reason = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local delay, settle_ms, retention = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[11])
local at = now()
local job = load_job(id)
if not job then return {'stale', 'gone'} end

local function health()
  local account = account_keys(job)
  if ARGV[8] == 'ok' then
    local was = redis.call('HMGET', account, 'breaker', 'failures')
    -- What was refused is the operator's to mend, whatever other calls come to.
    if was[1] ~= 'refused' and (was[1] == 'open' or (was[2] and was[2] ~= '0')) then
      redis.call('HSET', account, 'breaker', 'closed', 'failures', '0', 'reason', '')
    end
  elseif ARGV[8] == 'fault' then
    local failures = redis.call('HINCRBY', account, 'failures', 1)
    if failures >= tonumber(ARGV[9]) and redis.call('HGET', account, 'breaker') ~= 'refused' then
      redis.call('HSET', account, 'breaker', 'open', 'reason', reason,
        'retry_at', string.format('%.0f', at + tonumber(ARGV[10])))
    end
  elseif ARGV[8] == 'refused' then
    redis.call('HSET', account, 'breaker', 'refused', 'reason', reason,
      'refused_at', string.format('%.0f', at))
  end
end

local wake, lane = '', ''
local function done(state, till, members)
  local answer = {'done', state, till, wake, lane}
  for _, member in ipairs(members or {}) do answer[#answer + 1] = member end
  return answer
end

local holder = fence == job.fence and job.token ~= nil and job.token ~= ''
  and (job.state == 'calling' or job.state == 'unknown')
local open = job.state == 'queued' or job.state == 'calling' or job.state == 'unknown'
  or job.state == 'review'

-- The same settle once more: the answer to it was lost on the way.
if job.settled == ARGV[2] .. ' ' .. verdict then return done(job.state, 0) end
if not open or not (holder or verdict == 'registered') then
  if verdict == 'registered' then redis.call('HINCRBY', PREFIX .. 'stats', 'late_facts', 1) end
  return {'stale', job.state}
end

-- Only a question can prove absence.
if job.state == 'calling' and verdict == 'absent' then verdict = 'unknown' end

-- The event goes first: a script that fails (the stream's key may be of another kind) keeps what
-- it has written, and a job must not look settled without it.
local members
if verdict == 'registered' or verdict == 'rejected' then
  members = finish(id, job, at, verdict, retention, ARGV, 12)
elseif verdict == 'unresolvable' then
  members = publish(id, job, at, ARGV, 12)
  set(id, {state = 'review', why = reason}, job)
  redis.call('ZREM', KEYS[2], id)
  redis.call('ZADD', REVIEWS, string.format('%.0f', at), id)
  redis.call('HINCRBY', PREFIX .. 'stats', 'review', 1)
end

health()
local waiter, its_lane = leave(id, job, at)
if waiter then wake, lane = waiter, its_lane end
set(id, {settled = ARGV[2] .. ' ' .. ARGV[3], token = '', lease_until = 0})

if members then
  -- A fact of a stale worker: whoever holds the lease now finds the job over.
  if not holder then note(id, job, at, 'a late answer: registered') end
  local state = verdict == 'unresolvable' and 'review' or verdict
  note(id, job, at, state .. (reason ~= '' and ': ' .. reason or ''))
  return done(state, 0, members)
end

if verdict == 'absent' and job.claimed_at < job.settle_until then
  -- Too early to believe: the request may still be carried out. Asked again when it can't be.
  verdict, reason = 'unknown', 'not there yet: ' .. reason
end

if verdict == 'unknown' then
  local till, asks = at, 0
  if job.state == 'calling' then
    job.unknowns, job.settle_until = job.unknowns + 1, at + math.max(settle_ms, delay)
  else
    asks, till = job.asks + 1, at + delay
    if at < job.settle_until and till > job.settle_until then till = job.settle_until end
  end
  note(id, job, at, 'unknown: ' .. reason)
  set(id, {state = 'unknown', unknowns = job.unknowns, asks = asks, why = reason,
           settle_until = job.settle_until, due_at = till}, job)
  alarm(id, till)
  return done('unknown', till)
end

-- retry, or absent and believed: provably without effect
if job.state == 'unknown' and verdict ~= 'absent' then
  -- The question could not be asked; what is unknown stays so.
  note(id, job, at, 'unknown: not asked: ' .. reason)
  set(id, {why = reason, asks = job.asks + 1, due_at = at + delay})
  alarm(id, at + delay)
  return done('unknown', at + delay)
end
local till = verdict == 'absent' and at or at + delay
local attempts = job.attempts
if job.state == 'calling' and ARGV[7] == '0' then attempts = attempts - 1 end
note(id, job, at, 'queued: ' .. reason)
set(id, {state = 'queued', due_at = till, attempts = attempts, why = reason}, job)
alarm(id, math.min(till, math.max(job.deadline_at, at)))
return done('queued', till)
