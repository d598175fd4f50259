-- The shared functions: each script is preceded by those that it uses (`script_loader.py`). So
-- every statement here is `local` and starts at the beginning of a line. Runs nothing by itself.
--
-- Times are milliseconds of the server's clock. A job's record is the hash {reg}:job:<id>; keys of
-- an account are derived from the record, so not all keys are declared: they share one hash tag,
-- and so one slot of a cluster.
--
-- Whole numbers go to redis.call as they are, which writes them out in full; `..` does so for up to
-- 14 digits, which is enough for a time.
--
-- Each call costs the server about as much as everything that a script does between two calls. So a
-- record is read once, and written once with only its changes; and what several jobs have in common
-- is read with `once` and written by functions of which `_batch.lua` has other versions.

local PREFIX = '{reg}:'
local ALARMS = PREFIX .. 'alarms'
local REVIEWS = PREFIX .. 'reviews'
local DEAD = PREFIX .. 'dead'
local STREAMS = PREFIX .. 'streams'

-- Every unfinished job, by its state and then by its time of acceptance: counting those in a state,
-- and finding the oldest one, costs the same however many there are.
local OPEN = PREFIX .. 'open'
local RANKS = {queued = 0, calling = 2, unknown = 4, review = 6}
local RANK = 1e13  -- above any time in ms that we shall see

-- Queued jobs that must not be tried before a time, by lane and that time.
local LATER = PREFIX .. 'later'

-- A lost wake-up is replaced after this long, doubling while a job merely waits. No
-- longer than a minute: a broker that loses everything must not cost more than that.
local FIRST_PUSH, LAST_PUSH = 10000, 60000

-- Every SURE-th ring surely wakes a job, even if its lane is full: the first one, since the job has
-- no wake-up in the lane then, and later ones because its wake-up may be lost.
local SURE = 10

-- What `read` finds at a key. In a batch all jobs use the same answer, until `learn` gives another
-- (nil: it is read again).
local function once(key, read) return read(key) end
local function learn() end

local function read_clock()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end
local function now() return once('TIME', read_clock) end

local function job_key(id) return PREFIX .. 'job:' .. id end

local function account_keys(job)
  local name = job.provider .. ':' .. job.account
  return PREFIX .. 'account:' .. name, PREFIX .. 'inflight:' .. name, PREFIX .. 'waiting:' .. name
end

local function delivery_key(member) return PREFIX .. 'delivery:' .. member end

-- Of an endpoint: its record, its pending deliveries (by their creation), those that are being
-- tried (until when), and those that are queued for a place to be tried.
local function endpoint_keys(name)
  return PREFIX .. 'endpoint:' .. name, PREFIX .. 'pending:' .. name, PREFIX .. 'trying:' .. name,
    PREFIX .. 'line:' .. name
end

-- Read something of one key among many: nil if the key has the wrong type. One such
-- key, whoever wrote it, must not keep the others from their turn.
local function peek(...)
  local found = redis.pcall(...)
  if type(found) == 'table' and found.err then return nil end
  return found
end

local function table_of(flat)
  local found = {}
  for i = 1, #flat, 2 do found[flat[i]] = flat[i + 1] end
  return found
end

-- What most jobs have. A record keeps only what differs.
local USUAL = {lane = 'live', if_exists = 'reject', reply_to = '["results"]', metadata = '{}'}

-- The fields of a job's record that transitions use: texts, '' if missing, and numbers, 0 if
-- missing. A field is written only once it has another value. Also the fields that are named in
-- addition, as they are.
local function load_job(id, ...)
  local f = redis.call('HMGET', job_key(id), 'state', 'provider', 'account', 'fingerprint', 'lane',
    'if_exists', 'reply_to', 'metadata', 'token', 'settled', 'why', 'log', 'fence', 'attempts',
    'unknowns', 'asks', 'wakes', 'accepted_at', 'deadline_at', 'due_at', 'slot_at', 'claimed_at',
    'lease_until', 'settle_until', 'reopened', 'epoch', 'unproved', 'refusals', ...)
  if not f[1] then return nil end
  local unsaid = not f[27]
  for i = 13, 28 do f[i] = f[i] and tonumber(f[i]) or 0 end
  -- Workers of 0.1.0 do not write whether an absence was proved: it may not have been.
  if unsaid and f[15] > 0 then f[27] = -1 end
  return {
    state = f[1], provider = f[2], account = f[3], fingerprint = f[4], lane = f[5] or USUAL.lane,
    if_exists = f[6] or USUAL.if_exists, reply_to = f[7] or USUAL.reply_to,
    metadata = f[8] or USUAL.metadata, token = f[9] or '', settled = f[10] or '', why = f[11] or '',
    log = f[12] or '', fence = f[13], attempts = f[14], unknowns = f[15], asks = f[16],
    wakes = f[17], accepted_at = f[18], deadline_at = f[19], due_at = f[20], slot_at = f[21],
    claimed_at = f[22], lease_until = f[23], settle_until = f[24],
    reopened = f[25], epoch = f[26], unproved = f[27], refusals = f[28],
  }, unpack(f, 29)
end

-- Write a job's entry in OPEN; nil: it has none any more.
local function list_open(id, rank)
  if rank then redis.call('ZADD', OPEN, rank, id) else redis.call('ZREM', OPEN, id) end
end

-- Update a job's entries in the indices from its record. `was`, `was_due`: its previous state, and
-- when it was due then.
local function place(id, job, was, was_due)
  local rank, bulk = RANKS[job.state], job.lane == 'bulk' and RANK or 0
  list_open(id, rank and rank * RANK + bulk + job.accepted_at)
  if job.state == 'queued' and job.due_at > 0 then
    redis.call('ZADD', LATER, bulk + job.due_at, id)
  elseif was == 'queued' and was_due > 0 then
    redis.call('ZREM', LATER, id)
  end
end

-- Write the changes of a job's record; `job` is the present record, and is updated. Only this
-- function updates the indices, so that they cannot differ from the state.
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

-- A command may be repeated because its answer was lost, on another connection: then it changes
-- nothing, and a WAIT after it counts only what its own connection wrote. So it writes this, after
-- everything that any connection wrote before.
local function write_again()
  local written = redis.pcall('HINCRBY', PREFIX .. 'stats', 'again', 0)
  if type(written) ~= 'number' then redis.call('HSET', PREFIX .. 'stats', 'again', 0) end
end

-- Since when the ledger's server may have lost claims (0: never), and whether this job may have had
-- one: it was accepted before, or shortly after, and nobody has claimed it since (see `identity`).
local function read_doubt(key) return redis.call('HMGET', key, 'doubted_at', 'doubt_until') end
local function doubt(job)
  local found = once(PREFIX .. 'identity', read_doubt)
  local since, till = tonumber(found[1] or 0), tonumber(found[2] or 0)
  return since, job.accepted_at < till and job.epoch ~= since
end

local function alarm(member, at) redis.call('ZADD', ALARMS, at, member) end
local function no_alarm(member) redis.call('ZREM', ALARMS, member) end

-- Bytes that a script will answer: a batch ends when they are many.
local function weigh() end

-- Add to a counter; return its sum. One that is no number begins anew: it must not keep a job or a
-- delivery from its end.
local function increase(key, name, by)
  -- Not with `redis.pcall`: see `relay`.
  local well, sum = pcall(function() return redis.call('HINCRBY', key, name, by) end)
  if well then return sum end
  local text = type(sum) == 'table' and sum.err or tostring(sum)
  if not (text:find('WRONGTYPE') or text:find('not an integer') or text:find('overflow')) then
    -- With its code first: others would not know that it passes (READONLY, in a failover).
    error({err = text})
  end
  redis.pcall('HSET', key, name, by)
  return by
end

-- Count something for monitoring.
local function count(what, by) increase(PREFIX .. 'stats', what, by or 1) end

-- Keep a key for so many ms from now on.
local function keep(key, duration) redis.call('PEXPIRE', key, duration) end

-- How many members a sorted set has; who changes it calls `learn`.
local function read_size(key) return redis.call('ZCARD', key) end
local function size_of(key) return once(key, read_size) end

local function push_of(wakes) return math.min(LAST_PUSH, FIRST_PUSH * 2 ^ math.min(wakes, 10)) end

-- Whether an account is paused, and until when (ms; 0: until an operator resumes).
local function pause_of(paused, paused_until, at)
  local until_ = tonumber(paused_until or 0) or 0
  return paused == '1' and (until_ == 0 or until_ > at), until_
end

-- Write a person's action into the audit log. `actor`: who, role, from where and why, one line
-- each; '' for actions of no person. The action's own script calls it, so that every action has an
-- entry.
local AUDIT = PREFIX .. 'audit'
local function record_act(actor, what, on, before, after)
  local who, role, from, why = (actor or ''):match('^([^\n]*)\n([^\n]*)\n([^\n]*)\n(.*)$')
  if not who then return end
  redis.call('XADD', AUDIT, '*', 'who', who, 'role', role, 'from', from, 'what', what, 'on', on,
    'why', why, 'before', before, 'after', after)
end

-- Whether this act was done and its answer lost, if what it acted on is gone; and note that it is.
-- A client repeats a command within seconds.
local ACT = PREFIX .. 'act:'
local function was_done(ticket) return redis.call('EXISTS', ACT .. ticket) == 1 end
local function note_done(ticket) redis.call('SET', ACT .. ticket, '1', 'PX', 120000) end

-- The name of a packed actor, for a job's timeline.
local function name_of(actor) return actor:match('^[^\n]*') end

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

-- A place that is passed on is reserved for this long: the wake-up takes
-- milliseconds, and a lost one must not block a place for others.
local KEPT = 2000

-- How workers are woken: wake-ups that a worker must pass on to the broker, first those for which a
-- place is kept or somebody waits, and last those of bulk jobs; and by lane the broker's list and
-- the envelope of a wake-up, while workers announce that the broker is this server. A delivery's
-- lane is 'delivery'.
local WAKES, WAKING = PREFIX .. 'wakes', PREFIX .. 'waking'
local BULK_WAKES, URGENT_WAKES = WAKES .. ':bulk', WAKES .. ':urgent'

-- The most wake-ups that wait to be passed on; above that, alarms replace them.
local MOST_WAKES = 10000

-- Let a worker pass a wake-up on to the broker; return false if an alarm must replace it. A list of a
-- wrong type must not keep a job from its end.
local function relay(member, lane, list)
  -- Not with `redis.pcall`: a caller without the right to it is refused before anything is written.
  local well, queued = pcall(function() return redis.call('LPUSH', list, lane .. ' ' .. member) end)
  if well and queued <= MOST_WAKES then return true end
  if well then redis.call('LPOP', list) end
  return false
end

-- Names that one script encodes have much in common.
local SIXTY_FOUR = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/'
local ENCODED = {}
local function base64(text)
  local function digit(number) return SIXTY_FOUR:sub(number + 1, number + 1) end
  return (text:gsub('..?.?', function(group)
    local found = ENCODED[group]
    if found then return found end
    local a, b, c = group:byte(1, 3)
    local low = (b or 0) % 16 * 256 + (c or 0)
    found = digit((a - a % 4) / 4) .. digit(a % 4 * 16 + ((b or 0) - (b or 0) % 16) / 16)
      .. (b and digit((low - low % 64) / 64) or '=') .. (c and digit(low % 64) or '=')
    ENCODED[group] = found
    return found
  end))
end

-- By lane, its list at the broker, and the parts of a wake-up's envelope between the values; false
-- if the broker is not here.
local LANES, LONGEST_FORM = {}, 4096
local function lane_here(name)
  local lane = LANES[name]
  if lane ~= nil then return lane end
  local announced = (peek('HMGET', WAKING, name) or {})[1] or ''
  -- Workers announce some hundred bytes; filling in a junk form of a megabyte holds the server.
  local list, form = announced:sub(1, LONGEST_FORM):match('^([^\n]+)\n(.*)$')
  lane = list and #announced < LONGEST_FORM and {list = list} or false
  if lane then
    local last = 1
    for from, value, to in form:gmatch('()%$(%w+)%$()') do
      lane[#lane + 1], lane[#lane + 2], last = form:sub(last, from - 1), value, to
    end
    lane[#lane + 1] = form:sub(last)
  end
  LANES[name] = lane
  return lane
end

-- Put a wake-up into the broker's list; return false if that is not possible. `encoded`: the member
-- in base64, if the caller has it.
local function put(member, name, at, encoded)
  local lane = lane_here(name)
  -- A member that would have to be spelt in another way in JSON is left to a worker.
  if not lane or #member > 200 or member:find('[^%w%.:_~-]') then return false end
  -- Our workers give each message a tag of their own when they read it.
  local values, parts = {id = member, tag = member .. '.' .. at}, {}
  if name == 'delivery' then
    values.body = base64('[["' .. member .. '"], {}, {}]')
  elseif #member % 3 == 0 then
    values.base64 = encoded or base64(member)
  else
    return false
  end
  for i, part in ipairs(lane) do parts[i] = i % 2 == 0 and values[part] or part end
  -- The caller may have no right to the list, or a cluster may have it on another node.
  return type(redis.pcall('LPUSH', lane.list, table.concat(parts))) == 'number'
end

-- Wake a worker for a job or a delivery that must not wait: through the broker if it is here,
-- otherwise through another worker. An alarm remains in case the wake-up is lost.
local function wake_now(member, lane, at)
  local woken = put(member, lane, at) or relay(member, lane, URGENT_WAKES)
  alarm(member, woken and at + FIRST_PUSH or at)
end

-- Release the job's place among its account's calls, and pass it on to the first waiting job.
-- `was`: the job's previous state; a job that was called does not wait, since its claim removed it.
local function leave(id, job, at, was)
  local _, inflight, waiting = account_keys(job)
  if was ~= 'calling' then
    redis.call('ZREM', waiting, id)
    learn(waiting)
  end
  local had = redis.call('ZREM', inflight, id)
  learn(inflight)
  if had == 0 or size_of(waiting) == 0 then return end
  local first = redis.call('ZPOPMIN', waiting)
  learn(waiting)
  redis.call('ZADD', inflight, at + KEPT, first[1])
  local lane = peek('HGET', job_key(first[1]), 'lane') == 'bulk' and 'bulk' or 'live'
  wake_now(first[1], lane, at)
end

-- Write an event to the endpoints, args[from] and on, that are streams; return the other names. The
-- workers' announcements decide which are streams, not the caller's settings: a producer that
-- cancels a job knows no endpoint, and must not write in plain text what must be sealed. It may lack
-- the right to one of the streams: then none gets the event.
local function write(event_id, type_, event, sealed, args, from)
  local others, forms = {}, {}
  if not args[from] then return others end
  local function read() return redis.call('HMGET', STREAMS, unpack(args, from)) end
  for i, found in ipairs(once(STREAMS .. table.concat(args, ' ', from), read)) do
    local endpoint = args[from + i - 1]
    if not found and endpoint == 'results' then found = 'plain ' .. PREFIX .. 'results' end
    local form, stream = (found or ''):match('^(%l+) (.+)$')
    if not form then
      others[#others + 1] = endpoint
    elseif not forms[stream] then
      -- Two endpoints may have the same stream: it gets the event once.
      forms[stream] = form
      if not redis.acl_check_cmd('XADD', stream, '*', '', '') then
        error({err = 'NOPERM this user may not write to ' .. stream .. ': nothing was written'})
      end
    end
  end
  for stream, form in pairs(forms) do
    if form == 'sealed' or event == '' then
      redis.call('XADD', stream, '*', 'id', event_id, 'type', type_, 'sealed', sealed)
    else
      redis.call('XADD', stream, '*', 'event', event)
    end
  end
  return others
end

-- Let a delivery begin that has the name of one that exists: the key was used again after its job's
-- record had expired, and the first job's delivery is dead or was replayed; or a script failed after
-- it had published. Only the last fence of the old one stays, so that late results of its tries do
-- not count for the new one (`delivered`).
local function begin_anew(member, endpoint, fields)
  local key = delivery_key(member)
  local last = tonumber(redis.call('HMGET', key, 'fence')[1]) or 0
  redis.call('PEXPIRE', key, 0)  -- deletes it; producers, who cancel jobs, have no right to DEL
  redis.call('HSET', key, 'fence', last, 'replaced', last, unpack(fields))
  local _, _, trying, line = endpoint_keys(endpoint)
  for _, index in ipairs({trying, line}) do redis.call('ZREM', index, member) end
  if redis.call('ZREM', DEAD, member) > 0 then count('dead_dropped') end
end

-- Publish an event: on streams at once, to other endpoints by new deliveries, for which workers are
-- woken. args from `from` on: event_id, type, event (as published; '' if nothing may be sent
-- plain), sealed, what the job's record keeps of it (sealed; '' for an event without a job),
-- endpoint... `job`: whose event it is; nil for a refused request, or an endpoint.
local function tell(id, at, args, from, job)
  local event_id, sealed = args[from], args[from + 3]
  local others = write(event_id, args[from + 1], args[from + 2], sealed, args, from + 5)
  if not others[1] then return end
  local trace = job and redis.call('HMGET', job_key(id), 'trace')[1] or ''
  job = job or {provider = '', account = ''}
  for _, endpoint in ipairs(others) do
    local member = 'd:' .. event_id .. ':' .. endpoint
    local _, pending = endpoint_keys(endpoint)
    local fields = {'job', id, 'event_id', event_id, 'endpoint', endpoint, 'event', sealed,
      'tries', '0', 'state', 'pending', 'created_at', at, 'provider', job.provider,
      'account', job.account, 'trace', trace}
    if redis.call('HSET', delivery_key(member), unpack(fields)) < #fields / 2 then
      begin_anew(member, endpoint, fields)
    end
    redis.call('ZADD', pending, at, member)
    wake_now(member, 'delivery', at)
  end
end

-- The job stream, and the consumer group of all workers.
local JOBS, READERS = PREFIX .. 'jobs', 'workers'

-- Remove an entry of the job stream: its request is in the ledger, or its refusal is published.
local function handled(entry)
  redis.call('XACK', JOBS, READERS, entry)
  redis.call('XDEL', JOBS, entry)
end

-- A stream's entry as a reader gets it: {id, times, bytes, {field, value, ...}, {}}. An entry that
-- is too large for the reader has no content: {id, times, bytes, {}, {field, value, ...}}, where
-- names and values are cut short. Anybody may write to a stream, and no reader must get what is too
-- large.
local MOST_FIELDS, SHOWN_FIELDS, SHOWN_NAME, SHOWN_VALUE = 64, 4, 64, 2048
local function judged(entry, times, largest)
  local flat, size, shown = entry[2], 0, {}
  for i = 1, #flat do size = size + #flat[i] end
  if size <= largest and #flat <= 2 * MOST_FIELDS then
    return {entry[1], times, size, flat, shown}, size
  end
  for i = 1, math.min(#flat, 2 * SHOWN_FIELDS) do
    shown[i] = flat[i]:sub(1, i % 2 == 1 and SHOWN_NAME or SHOWN_VALUE)
  end
  return {entry[1], times, size, {}, shown}, size
end

-- A page of a stream's entries. Content is read one entry at a time, since the server copies what a
-- script reads. It is full at `most` entries, or past `bytes`.
local function page_of(most, bytes, largest)
  local page, found, read = {}, {}, 0
  function page.full() return #found >= most or read >= bytes end
  function page.add(entry, times)
    local one, size = judged(entry, times, largest)
    found[#found + 1], read = one, read + size
  end
  page.found = found
  return page
end

-- How often a pending entry of a group was delivered.
local function times_of(stream, group, id)
  local pending = redis.call('XPENDING', stream, group, id, id, 1)[1]
  return pending and pending[4] or 0
end

-- Of a fingerprint's 64 digits, 32 recognize a repeat safely: these are kept of a finished job.
local DIGITS, KEPT_DIGITS = 64, 32
local function shortened(fingerprint)
  return #fingerprint > DIGITS and fingerprint:sub(1, KEPT_DIGITS - DIGITS - 1) or fingerprint
end

-- Whether a fingerprint is the kept one, shortened or not.
local function same(kept, given) return given:sub(1, #kept) == kept end

-- An index of finished jobs: for each state and account a stream of jobs' ids, by the time of their
-- end. A stream takes a fifth of the memory of a sorted set. An entry is valid while its job is in
-- that state.
local function list_ended(id, job, at, state, retention)
  local ended = PREFIX .. 'ended:' .. state .. ':' .. job.provider .. ':' .. job.account
  redis.call('XADD', ended, 'MINID', '~', at - retention, '*', 'i', id)
  keep(ended, retention)
end

-- How long a person or a producer keeps the record of a job that they end: as long as workers do, whatever
-- their own settings say. A repeat of the job's key that comes later would make a second customer.
local function kept_for(retention)
  local announced = redis.call('HMGET', PREFIX .. 'replicas', 'retention_ms')[1]
  return math.max(tonumber(retention), tonumber(announced or 0))
end

-- The end of a job: `changes` of its record in addition; its event, args as for `tell`, is kept
-- with it. Records stay for days, and most are never read: they are made small.
local function finish(id, job, at, state, retention, args, from, changes)
  -- First, since a script that fails keeps what it has written: an event without an end is better
  -- than an end without an event (the stream's key may have another type).
  tell(id, at, args, from, job)
  local was = job.state
  -- The payload must not outlive its job; the other fields are no longer needed.
  local gone = {'payload', 'token', 'leased_by', 'lease_until', 'claimed_at', 'slot_at', 'wakes',
    'asks', 'due_at', 'settle_until', 'trace', 'epoch', 'unproved', 'refusals'}
  redis.call('HDEL', job_key(id), unpack(gone))
  changes.state, changes.finished_at, changes.event = state, at, args[from + 4]
  changes.fingerprint = shortened(job.fingerprint)
  set(id, job, changes)
  no_alarm(id)
  if was == 'review' then redis.call('ZREM', REVIEWS, id) end
  if was == 'queued' then
    local _, _, waiting = account_keys(job)
    redis.call('ZREM', waiting, id)
  end
  count(state .. ':' .. job.provider .. ':' .. job.account)
  redis.call('PEXPIRE', job_key(id), retention)
  list_ended(id, job, at, state, retention)
  redis.call('PUBLISH', PREFIX .. 'done:' .. id, state)
end

-- A queued delivery is woken when a place becomes free; its alarm is for a lost wake-up.
local IN_LINE = 600000

-- How long dead deliveries are kept if no worker has announced it: 30 days.
local DEAD_RETENTION = 2592000000

-- Queue a delivery for a place among the endpoint's tries: the oldest delivery first.
local function stand_in_line(member, d, at)
  local _, _, _, line = endpoint_keys(d.endpoint)
  redis.call('ZADD', line, d.created_at, member)
  alarm(member, at + IN_LINE)
end

-- Release a delivery's place among its endpoint's tries, and pass it on to the first queued one.
local function vacate(member, endpoint, at)
  local _, _, trying, line = endpoint_keys(endpoint)
  redis.call('ZREM', line, member)
  if redis.call('ZREM', trying, member) == 0 then return end
  local first
  repeat
    first = redis.call('ZPOPMIN', line)[1]
    if not first then return end
    local seen = peek('HMGET', delivery_key(first), 'state')
  until seen and seen[1] == 'pending'
  wake_now(first, 'delivery', at)
end

-- The end of a failed delivery: no alarm, kept for some time for a person to replay.
local function bury(member, d, at, why)
  local endpoint, pending, trying, line = endpoint_keys(d.endpoint)
  local kept = tonumber(redis.call('HMGET', endpoint, 'dead_retention')[1]) or DEAD_RETENTION
  local dropped = redis.call('ZREMRANGEBYSCORE', DEAD, '-inf', at - kept)
  if dropped > 0 then count('dead_dropped', dropped) end
  redis.call('ZADD', DEAD, at, member)
  redis.call('PEXPIRE', DEAD, kept)
  redis.call('HSET', delivery_key(member), 'state', 'dead', 'dead_at', at, 'why', why,
    'lease_until', '0', 'token', '')
  redis.call('PEXPIRE', delivery_key(member), kept)
  for _, key in ipairs({ALARMS, pending, trying, line}) do redis.call('ZREM', key, member) end
  count('dead')
end

-- Add a delivery's result to its job's timeline, if the job still exists.
local function tell_job(d, at, text)
  local seen = d.job and peek('HMGET', job_key(d.job), 'state', 'log')
  if not seen or not seen[1] then return end
  local log = noted(seen[2] or '', at, 'delivery to ' .. d.endpoint .. ': ' .. text)
  redis.call('HSET', job_key(d.job), 'log', log)
end

local CONFIGURED, ANNOUNCED = PREFIX .. 'configured', PREFIX .. 'announced'

-- A number that JSON can hold; nil for what is none.
local function finite(value)
  local number = tonumber(value)
  return number and math.abs(number) < math.huge and number or nil
end

local function first_of(key)
  return finite((peek('ZRANGE', key, 0, 0, 'WITHSCORES') or {})[2])
end

-- Read for monitoring: a key of a wrong type is listed in `unreadable`, and counts as empty. Any
-- other error is one: a caller without a right must not take all for empty.
local function named(unreadable, command, key, ...)
  local found = redis.pcall(command, key, ...)
  if type(found) ~= 'table' or not found.err then return found end
  if not found.err:find('WRONGTYPE') then error(found) end
  unreadable[#unreadable + 1] = key
end

-- The state of the accounts and endpoints with these names, for monitoring. An endpoint that no
-- worker announces any more is included while there are deliveries to it.
local function described(names, at, unreadable)
  local accounts, endpoints, later = {}, {}, string.format('(%.0f', at)
  for _, name in ipairs(names) do
    local account = name:match('^account:(.+)$')
    if account then
      local found = table_of(named(unreadable, 'HGETALL', PREFIX .. 'account:' .. account) or {})
      found.name = account
      found.in_flight = named(unreadable, 'ZCOUNT', PREFIX .. 'inflight:' .. account, later,
        '+inf') or 0
      found.waiting = named(unreadable, 'ZCARD', PREFIX .. 'waiting:' .. account) or 0
      accounts[#accounts + 1] = found
    end
    local endpoint = name:match('^endpoint:(.+)$')
    -- Streams get no deliveries: the event is written with the job's end.
    if endpoint and endpoint ~= 'results' and named(unreadable, 'HEXISTS', STREAMS, endpoint) ~= 1 then
      local record, pending, trying, line = endpoint_keys(endpoint)
      local found = named(unreadable, 'HMGET', record, 'disabled', 'failing_since', 'stray_at') or {}
      if named(unreadable, 'SISMEMBER', CONFIGURED, name) == 1 or redis.call('EXISTS', pending) == 1 then
        endpoints[#endpoints + 1] = {
          name = endpoint, disabled = found[1] == '1', failing_since = finite(found[2]) or 0,
          stray_at = finite(found[3]) or 0,
          pending = named(unreadable, 'ZCARD', pending) or 0, oldest = first_of(pending) or 0,
          trying = named(unreadable, 'ZCOUNT', trying, later, '+inf') or 0,
          in_line = named(unreadable, 'ZCARD', line) or 0,
        }
      end
    end
  end
  return accounts, endpoints
end

-- Some streams with their groups, for monitoring.
local function read_streams(names)
  local streams = {}
  for i, name in ipairs(names) do
    local groups = redis.pcall('XINFO', 'GROUPS', name)
    local length = redis.pcall('XLEN', name)
    streams[i] = {name = name, length = tonumber(length) or 0, groups = {}}
    -- Before the first event the stream does not exist.
    for j, flat in ipairs(groups.err and {} or groups) do streams[i].groups[j] = table_of(flat) end
  end
  return streams
end
