-- gauges: (no edge) how much of everything there is, in a look that takes the same time however much
-- KEYS: open, later, alarms, reviews
-- ARGV: at most how many workers
-- Returns JSON: an object with `at` and the tables below. Reads only.
local at = now()

local function first_of(key)
  return tonumber(redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')[2])
end

local function between(key, low, high)
  return redis.call('ZCOUNT', key, string.format('%.0f', low), string.format('(%.0f', high))
end

-- {state, lane, how many, when the oldest was accepted}; of queued jobs also how many are put off.
-- An entry that is not as its record says is named in `astray`.
local jobs, astray = {}, {}
for state, rank in pairs(RANKS) do
  for i, lane in ipairs({'live', 'bulk'}) do
    local low = (rank + i - 1) * RANK
    local found = {state, lane, between(KEYS[1], low, low + RANK), 0, 0}
    local oldest = redis.call('ZRANGE', KEYS[1], string.format('%.0f', low),
      string.format('(%.0f', low + RANK), 'BYSCORE', 'LIMIT', 0, 1, 'WITHSCORES')
    if oldest[1] then
      found[4] = tonumber(oldest[2]) - low
      local seen = redis.call('HMGET', job_key(oldest[1]), 'state', 'lane')
      if seen[1] ~= state or seen[2] ~= lane then astray[#astray + 1] = oldest[1] end
    end
    if state == 'queued' then found[5] = between(KEYS[2], low + at + 1, low + RANK) end
    jobs[#jobs + 1] = found
  end
end

local accounts, endpoints = {}, {}
for _, name in ipairs(redis.call('SMEMBERS', PREFIX .. 'configured')) do
  local account = name:match('^account:(.+)$')
  if account then
    local found = table_of(redis.call('HGETALL', PREFIX .. 'account:' .. account))
    found.name = account
    found.in_flight = redis.call('ZCOUNT', PREFIX .. 'inflight:' .. account,
      string.format('(%.0f', at), '+inf')
    found.waiting = redis.call('ZCARD', PREFIX .. 'waiting:' .. account)
    accounts[#accounts + 1] = found
  end
  local endpoint = name:match('^endpoint:(.+)$')
  -- Those that are streams get no deliveries: the event is there with the job's end.
  if endpoint and endpoint ~= 'results' and redis.call('HEXISTS', STREAMS, endpoint) == 0 then
    local record, pending, trying, line = endpoint_keys(endpoint)
    local found = redis.call('HMGET', record, 'disabled', 'failing_since')
    endpoints[#endpoints + 1] = {
      name = endpoint, disabled = found[1] == '1', failing_since = tonumber(found[2]) or 0,
      pending = redis.call('ZCARD', pending), oldest = first_of(pending) or 0,
      trying = redis.call('ZCOUNT', trying, string.format('(%.0f', at), '+inf'),
      in_line = redis.call('ZCARD', line),
    }
  end
end

-- By endpoint, of the newest; those before them, should there ever be so many, under no name.
local NEWEST = 1000
local dead = {}
for _, member in ipairs(redis.call('ZREVRANGE', DEAD, 0, NEWEST - 1)) do
  local endpoint = member:match('([^:]+)$')
  dead[endpoint] = (dead[endpoint] or 0) + 1
end
if redis.call('ZCARD', DEAD) > NEWEST then dead[''] = redis.call('ZCARD', DEAD) - NEWEST end

local streams, seen = {}, {}
local forms = redis.call('HVALS', STREAMS)
forms[#forms + 1] = 'plain ' .. PREFIX .. 'results'
forms[#forms + 1] = 'plain ' .. JOBS
for _, form in ipairs(forms) do
  local stream = form:match('^%l+ (.+)$')
  if stream and not seen[stream] then
    seen[stream] = true
    local groups = redis.pcall('XINFO', 'GROUPS', stream)
    local length = redis.pcall('XLEN', stream)
    local found = {name = stream, length = tonumber(length) or 0, groups = {}}
    -- There is no stream before the first event.
    for i, flat in ipairs(groups.err and {} or groups) do
      found.groups[i] = table_of(flat)
    end
    streams[#streams + 1] = found
  end
end

local workers = {}
for _, name in ipairs(redis.call('ZREVRANGE', PREFIX .. 'workers', 0, ARGV[1] - 1)) do
  local found = table_of(redis.call('HGETALL', PREFIX .. 'worker:' .. name))
  if found.at then workers[#workers + 1] = found end
end

return cjson.encode({
  at = at, jobs = jobs, astray = astray, accounts = accounts, streams = streams, workers = workers,
  alarms = {redis.call('ZCARD', KEYS[3]), between(KEYS[3], 0, at + 1), first_of(KEYS[3]) or 0},
  reviews = {redis.call('ZCARD', KEYS[4]), first_of(KEYS[4]) or 0},
  quarantine = redis.call('ZCARD', PREFIX .. 'quarantine'),
  endpoints = endpoints, dead = dead,
  stats = table_of(redis.call('HGETALL', PREFIX .. 'stats')),
})
