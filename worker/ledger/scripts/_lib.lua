-- What scripts share: in front of each stands what it uses (`linking.py`), so that all here is `local`
-- and begins its line. Runs nothing by itself.
--
-- Times are milliseconds of the server's clock. A job's record is the hash {reg}:job:<id>; keys of
-- an account are derived from the record, so not all keys are declared: they share one hash tag,
-- and so one slot of a cluster.
--
-- Whole numbers go to redis.call as they are, which writes them out in full; `..` does so for up to
-- 14 digits, which is enough for a time.
--
-- Each call costs the server about as much as all that a script does between two of them. So a
-- record is read once and written once, and only what has changed.

local PREFIX = '{reg}:'
local ALARMS = PREFIX .. 'alarms'
local REVIEWS = PREFIX .. 'reviews'
local DEAD = PREFIX .. 'dead'
local STREAMS = PREFIX .. 'streams'

-- Every job that is not over, by where it stands and then by when it was accepted: counting those in
-- a state, and finding the one that waits longest, costs the same however many there are.
local OPEN = PREFIX .. 'open'
local RANKS = {queued = 0, calling = 2, unknown = 4, review = 6}
local RANK = 1e13  -- above any time in ms that we shall see

-- Queued jobs that are not to be tried before a time, by lane and that time.
local LATER = PREFIX .. 'later'

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

local function delivery_key(member) return PREFIX .. 'delivery:' .. member end

-- Of an endpoint: its record, its deliveries that are pending (by when they were made), those of
-- them that are being tried (until when), and those that stand in line for a place to be tried.
local function endpoint_keys(name)
  return PREFIX .. 'endpoint:' .. name, PREFIX .. 'pending:' .. name, PREFIX .. 'trying:' .. name,
    PREFIX .. 'line:' .. name
end

local function table_of(flat)
  local found = {}
  for i = 1, #flat, 2 do found[flat[i]] = flat[i + 1] end
  return found
end

-- What most jobs say. The record of one that is over says only what differs.
local USUAL = {lane = 'live', if_exists = 'reject', reply_to = '["results"]', metadata = '{}'}

-- What transitions go by of a job's record: texts, '' where they are not there, and numbers, 0 where
-- they are not there. Neither is written before it is something else.
local function load_job(id)
  local f = redis.call('HMGET', job_key(id), 'state', 'provider', 'account', 'fingerprint', 'lane',
    'if_exists', 'reply_to', 'metadata', 'token', 'settled', 'why', 'log', 'fence', 'attempts',
    'unknowns', 'asks', 'wakes', 'accepted_at', 'deadline_at', 'due_at', 'slot_at', 'claimed_at',
    'lease_until', 'settle_until')
  if not f[1] then return nil end
  for i = 13, 24 do f[i] = tonumber(f[i] or 0) end
  return {
    state = f[1], provider = f[2], account = f[3], fingerprint = f[4], lane = f[5] or USUAL.lane,
    if_exists = f[6] or USUAL.if_exists, reply_to = f[7] or USUAL.reply_to,
    metadata = f[8] or USUAL.metadata, token = f[9] or '', settled = f[10] or '', why = f[11] or '',
    log = f[12] or '', fence = f[13], attempts = f[14], unknowns = f[15], asks = f[16],
    wakes = f[17], accepted_at = f[18], deadline_at = f[19], due_at = f[20], slot_at = f[21],
    claimed_at = f[22], lease_until = f[23], settle_until = f[24],
  }
end

-- Put a job's entries in the indices where its record says. `was`, `was_due`: its state before, and
-- when it was due then.
local function place(id, job, was, was_due)
  local rank, bulk = RANKS[job.state], job.lane == 'bulk' and RANK or 0
  if rank then
    redis.call('ZADD', OPEN, rank * RANK + bulk + job.accepted_at, id)
  else
    redis.call('ZREM', OPEN, id)
  end
  if job.state == 'queued' and job.due_at > 0 then
    redis.call('ZADD', LATER, bulk + job.due_at, id)
  elseif was == 'queued' and was_due > 0 then
    redis.call('ZREM', LATER, id)
  end
end

-- Write what changes of a job's record; `job` is the record as it stands, and changes with it. The
-- indices follow the state here and nowhere else, so that they cannot part from it.
local function set(id, job, changes)
  local was, was_due, flat = job.state, job.due_at, {}
  for name, value in pairs(changes) do
    if value ~= (job[name] or '') then
      job[name] = value
      flat[#flat + 1] = name
      flat[#flat + 1] = value
    end
  end
  if flat[1] then redis.call('HSET', job_key(id), unpack(flat)) end
  if job.state ~= was then place(id, job, was, was_due) end
end

local function alarm(member, at) redis.call('ZADD', ALARMS, at, member) end

local function push_of(wakes) return math.min(LAST_PUSH, FIRST_PUSH * 2 ^ math.min(wakes, 10)) end

-- A job's timeline with one more line: "<ms> <step> <what came of it>", the last 40 of them.
local MOST_LINES, SHORTEST_LINE = 40, 15
local function noted(log, at, text)
  log = log .. at .. ' ' .. text:gsub('%c', ' ') .. '\n'
  if #log > MOST_LINES * SHORTEST_LINE then
    local _, lines = log:gsub('\n', '')
    if lines > MOST_LINES then log = log:gsub('^[^\n]*\n', '', lines - MOST_LINES) end
  end
  return log
end

-- A place that is passed on is kept for so long for whom it was passed to: the wake-up takes
-- milliseconds, and one that is lost must not keep a place from the others.
local KEPT = 2000

-- Give back the job's place among its account's calls, and pass it on to the first who waits.
-- `was`: the job's state before; who was called stands in no line, since its claim took it off.
-- Returns the job to wake and its lane, if any.
local function leave(id, job, at, was)
  local _, inflight, waiting = account_keys(job)
  if was ~= 'calling' then redis.call('ZREM', waiting, id) end
  if redis.call('ZREM', inflight, id) == 0 then return nil end
  local first = redis.call('ZPOPMIN', waiting)
  if not first[1] then return nil end
  redis.call('ZADD', inflight, at + KEPT, first[1])
  -- Its own alarm still stands, should the wake-up be lost.
  alarm(first[1], at + FIRST_PUSH)
  return first[1], redis.call('HGET', job_key(first[1]), 'lane') or 'live'
end

-- Write an event to those of the endpoints, args[from] and on, that are streams; the others' names.
-- Which are is what workers have announced, and not what the caller has configured: a producer that
-- takes a job back knows no endpoint, and must not write plain what is to be sealed.
local function write(event_id, event, sealed, args, from)
  local others, written = {}, {}
  if not args[from] then return others end
  for i, found in ipairs(redis.call('HMGET', STREAMS, unpack(args, from))) do
    local endpoint = args[from + i - 1]
    if not found and endpoint == 'results' then found = 'plain ' .. PREFIX .. 'results' end
    local form, stream = (found or ''):match('^(%l+) (.+)$')
    if not form then
      others[#others + 1] = endpoint
    elseif not written[stream] then
      -- Two endpoints may name one stream: it gets the event once.
      written[stream] = true
      if form == 'sealed' then
        -- Not by cjson, which refuses what is nested deeply; `source` is all that stands before.
        local type_ = event:match('"type":"([^"]*)"') or ''
        redis.call('XADD', stream, '*', 'id', event_id, 'type', type_, 'sealed', sealed)
      else
        redis.call('XADD', stream, '*', 'event', event)
      end
    end
  end
  return others
end

-- Publish an event: on streams at once, to other endpoints by deliveries set off, whose members are
-- returned. args from `from` on: event_id, event (as published), sealed, what the job's record keeps
-- of it (sealed; '' for an event of no job), endpoint...
-- `job`: whose event it is; none of a request that made no job, or of an endpoint.
local function tell(id, at, args, from, job)
  local event_id, event, sealed = args[from], args[from + 1], args[from + 2]
  local others = write(event_id, event, sealed, args, from + 4)
  local members = {}
  if not others[1] then return members end
  local trace = job and redis.call('HGET', job_key(id), 'trace') or ''
  job = job or {provider = '', account = ''}
  for _, endpoint in ipairs(others) do
    local member = 'd:' .. event_id .. ':' .. endpoint
    local _, pending = endpoint_keys(endpoint)
    redis.call('HSET', delivery_key(member), 'job', id, 'event_id', event_id,
      'endpoint', endpoint, 'event', sealed, 'tries', '0', 'state', 'pending',
      'created_at', at, 'provider', job.provider, 'account', job.account, 'trace', trace)
    redis.call('ZADD', pending, at, member)
    alarm(member, at + FIRST_PUSH)
    members[#members + 1] = member
  end
  return members
end

-- The job stream, and the group of its readers, which is all workers.
local JOBS, READERS = PREFIX .. 'jobs', 'workers'

-- Be done with an entry of the job stream: what it asked for is in the ledger, or told.
local function handled(entry)
  redis.call('XACK', JOBS, READERS, entry)
  redis.call('XDEL', JOBS, entry)
end

-- Of a fingerprint's 64 digits 32 know a repeat as surely: they are what is kept when a job is over.
local DIGITS, KEPT_DIGITS = 64, 32
local function shortened(fingerprint)
  return #fingerprint > DIGITS and fingerprint:sub(1, KEPT_DIGITS - DIGITS - 1) or fingerprint
end

-- Whether a fingerprint is the one that is kept, shortened or not.
local function same(kept, given) return given:sub(1, #kept) == kept end

-- The end of a job: `changes` of its record besides; what is told of it, args as for `tell`, is kept
-- with it. Records stay for days, most of them for nobody to ask for: they are made small.
local function finish(id, job, at, state, retention, args, from, changes)
  -- First, for a script that fails keeps what it has written: better an event and no end (the
  -- stream's key may be of another kind) than an end and no event.
  local members = tell(id, at, args, from, job)
  local was = job.state
  -- The payload must not outlive its job's end; the rest is of no use to anybody any more.
  local gone = {'payload', 'token', 'leased_by', 'lease_until', 'claimed_at', 'slot_at', 'wakes',
    'asks', 'due_at', 'settle_until', 'trace'}
  for name, usual in pairs(USUAL) do
    if job[name] == usual then gone[#gone + 1] = name end
  end
  redis.call('HDEL', job_key(id), unpack(gone))
  changes.state, changes.finished_at, changes.event = state, at, args[from + 3]
  changes.fingerprint = shortened(job.fingerprint)
  set(id, job, changes)
  redis.call('ZREM', ALARMS, id)
  if was == 'review' then redis.call('ZREM', REVIEWS, id) end
  if was == 'queued' then
    local _, _, waiting = account_keys(job)
    redis.call('ZREM', waiting, id)
  end
  redis.call('HINCRBY', PREFIX .. 'stats', state .. ':' .. job.provider .. ':' .. job.account, 1)
  redis.call('PEXPIRE', job_key(id), retention)
  redis.call('PUBLISH', PREFIX .. 'done:' .. id, state)
  return members
end

-- A delivery in line is woken when a place gets free; its alarm is for when that came to nothing.
local IN_LINE = 600000

-- How long dead deliveries are kept, where no worker has announced it: 30 days.
local DEAD_RETENTION = 2592000000

-- Stand in line for a place among the endpoint's tries: the oldest delivery first.
local function stand_in_line(member, d, at)
  local _, _, _, line = endpoint_keys(d.endpoint)
  redis.call('ZADD', line, d.created_at, member)
  alarm(member, at + IN_LINE)
end

-- Give back a delivery's place among its endpoint's tries, and pass it on to the first in line.
-- Returns the delivery to wake, or ''.
local function vacate(member, endpoint, at)
  local _, _, trying, line = endpoint_keys(endpoint)
  redis.call('ZREM', line, member)
  if redis.call('ZREM', trying, member) == 0 then return '' end
  local first = redis.call('ZPOPMIN', line)
  if not first[1] then return '' end
  -- Its own alarm still stands, should the wake-up be lost.
  alarm(first[1], at + FIRST_PUSH)
  return first[1]
end

-- The end of a delivery that nobody took: no alarm, kept for a person to replay, not for ever.
local function bury(member, d, at, why)
  local endpoint, pending, trying, line = endpoint_keys(d.endpoint)
  local kept = tonumber(redis.call('HGET', endpoint, 'dead_retention') or DEAD_RETENTION)
  local dropped = redis.call('ZREMRANGEBYSCORE', DEAD, '-inf', at - kept)
  if dropped > 0 then redis.call('HINCRBY', PREFIX .. 'stats', 'dead_dropped', dropped) end
  redis.call('ZADD', DEAD, at, member)
  redis.call('PEXPIRE', DEAD, kept)
  redis.call('HSET', delivery_key(member), 'state', 'dead', 'dead_at', at, 'why', why,
    'lease_until', '0', 'token', '')
  redis.call('PEXPIRE', delivery_key(member), kept)
  for _, key in ipairs({ALARMS, pending, trying, line}) do redis.call('ZREM', key, member) end
  redis.call('HINCRBY', PREFIX .. 'stats', 'dead', 1)
end

-- What a delivery came to, in its job's timeline, while there is one.
local function tell_job(d, at, text)
  local seen = redis.call('HMGET', job_key(d.job), 'state', 'log')
  if not seen[1] then return end
  local log = noted(seen[2] or '', at, 'delivery to ' .. d.endpoint .. ': ' .. text)
  redis.call('HSET', job_key(d.job), 'log', log)
end
