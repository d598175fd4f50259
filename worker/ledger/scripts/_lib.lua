-- Shared by all scripts: put in front of each when it is loaded. Runs nothing by itself.
--
-- Times are milliseconds of the server's clock. A job's record is the hash {reg}:job:<id>; keys of
-- an account are derived from the record, so not all keys are declared: they share one hash tag,
-- and so one slot of a cluster.

local PREFIX = '{reg}:'
local ALARMS = PREFIX .. 'alarms'
local REVIEWS = PREFIX .. 'reviews'

-- A wake-up that got lost is made up for after this long, doubling while a job merely waits. No
-- longer than a minute: a broker that forgets everything must not cost more than that.
local FIRST_PUSH, LAST_PUSH = 10000, 60000

-- Every how many rings a job is woken even if its lane is crowded: the first time, since it has no
-- wake-up in the lane then, and later in case that its wake-up is the one that got lost.
local SURE = 10

local function now()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function job_key(id) return PREFIX .. 'job:' .. id end

local function account_keys(job)
  local name = job.provider .. ':' .. job.account
  return PREFIX .. 'account:' .. name, PREFIX .. 'inflight:' .. name, PREFIX .. 'waiting:' .. name
end

local function table_of(flat)
  local found = {}
  for i = 1, #flat, 2 do found[flat[i]] = flat[i + 1] end
  return found
end

local function load_job(id)
  local job = table_of(redis.call('HGETALL', job_key(id)))
  if not job.state then return nil end
  for _, name in ipairs({'fence', 'attempts', 'unknowns', 'asks', 'wakes', 'events',
                         'lease_until', 'claimed_at', 'due_at', 'deadline_at', 'settle_until',
                         'slot_at', 'accepted_at'}) do
    job[name] = tonumber(job[name] or '0')
  end
  return job
end

local function set(id, fields)
  local flat = {}
  for name, value in pairs(fields) do
    flat[#flat + 1] = name
    flat[#flat + 1] = type(value) == 'number' and string.format('%.0f', value) or value
  end
  redis.call('HSET', job_key(id), unpack(flat))
end

local function alarm(member, at) redis.call('ZADD', ALARMS, string.format('%.0f', at), member) end

local function push_of(wakes) return math.min(LAST_PUSH, FIRST_PUSH * 2 ^ math.min(wakes, 10)) end

-- The timeline of a job: "<ms> <step> <what came of it>", a line a step, the last 40 of them.
local function note(id, job, at, text)
  local line = string.format('%.0f ', at) .. text:gsub('%c', ' ')
  local log = (job.log or '') .. line .. '\n'
  local _, lines = log:gsub('\n', '')
  if lines > 40 then log = log:gsub('^[^\n]*\n', '', lines - 40) end
  job.log = log
  redis.call('HSET', job_key(id), 'log', log)
end

-- Give back the job's place among its account's calls, and pass it on to the first who waits.
-- Returns the job to wake and its lane, if any.
local function leave(id, job, at)
  local _, inflight, waiting = account_keys(job)
  redis.call('ZREM', waiting, id)
  if redis.call('ZREM', inflight, id) == 0 then return nil end
  local first = redis.call('ZPOPMIN', waiting)
  if not first[1] then return nil end
  -- Its own alarm still stands, should the wake-up be lost.
  alarm(first[1], at + FIRST_PUSH)
  return first[1], redis.call('HGET', job_key(first[1]), 'lane') or 'live'
end

-- The end of a job, whole: final state, event, erased payload, no alarm, deliveries set off.
-- publish = {event_id, event (as published), sealed, retention_ms, n, stream..., member, endpoint...}
local function publish(id, job, at, args, from)
  local event_id, event, sealed = args[from], args[from + 1], args[from + 2]
  local streams = tonumber(args[from + 3])
  local i = from + 4
  for _ = 1, streams do
    redis.call('XADD', args[i], '*', 'event', event)
    i = i + 1
  end
  local members = {}
  while args[i] do
    local endpoint = args[i]
    local member = 'd:' .. event_id .. ':' .. endpoint
    redis.call('HSET', PREFIX .. 'delivery:' .. member, 'job', id, 'event_id', event_id,
      'endpoint', endpoint, 'event', sealed, 'tries', '0', 'state', 'pending',
      'created_at', string.format('%.0f', at))
    alarm(member, at + FIRST_PUSH)
    members[#members + 1] = member
    i = i + 1
  end
  set(id, {event = sealed, events = job.events + 1})
  return members
end

local function finish(id, job, at, state, retention, args, from)
  -- First, for a script that fails keeps what it has written: better an event and no end (the
  -- stream's key may be of another kind) than an end and no event.
  local members = publish(id, job, at, args, from)
  redis.call('HDEL', job_key(id), 'payload', 'token', 'leased_by', 'lease_until', 'slot_at', 'wakes')
  set(id, {state = state, finished_at = at})
  redis.call('ZREM', ALARMS, id)
  redis.call('ZREM', REVIEWS, id)
  local _, _, waiting = account_keys(job)
  redis.call('ZREM', waiting, id)
  redis.call('HINCRBY', PREFIX .. 'stats', state, 1)
  redis.call('PEXPIRE', job_key(id), retention)
  redis.call('PUBLISH', PREFIX .. 'done:' .. id, state)
  return members
end
