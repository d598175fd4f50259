-- snapshot: (no edge) how much of everything there is; the read takes the same time however much
-- KEYS: open, later, alarms, reviews
-- ARGV: at most how many workers, and names of accounts and endpoints
-- Returns JSON: an object with `at` and the tables below. Where there are more names, `partial` is true,
-- accounts, endpoints and stats are empty, and the endpoints' streams are missing. Reads only.
local at, unreadable = now(), {}

-- What a key shows; 0 or {}: it is empty, or none of ours.
local function size(command, key) return named(unreadable, command, key) or 0 end
local function all(...) return named(unreadable, ...) or {} end
local function between(key, low, high)
  return named(unreadable, 'ZCOUNT', key, string.format('%.0f', low), string.format('(%.0f', high)) or 0
end

-- {state, lane, how many, when the oldest was accepted}; of queued jobs also how many are put off.
-- No job's record is read: a role that may see all numbers must not see them.
local jobs = {}

for state, rank in pairs(RANKS) do
  for i, lane in ipairs({'live', 'bulk'}) do
    local low = (rank + i - 1) * RANK
    local found = {state, lane, between(KEYS[1], low, low + RANK), 0, 0}
    local oldest = all('ZRANGE', KEYS[1], string.format('%.0f', low),
      string.format('(%.0f', low + RANK), 'BYSCORE', 'LIMIT', 0, 1, 'WITHSCORES')
    if oldest[1] then found[4] = tonumber(oldest[2]) - low end
    if state == 'queued' then found[5] = between(KEYS[2], low + at + 1, low + RANK) end
    jobs[#jobs + 1] = found
  end
end

-- Reading more names than this would block all other commands: the caller reads some at a time
-- (`accounts`, `streams`).
local most = tonumber(ARGV[2])
local partial = size('SCARD', CONFIGURED) > most or size('ZCARD', ANNOUNCED) > most
  or size('HLEN', PREFIX .. 'stats') > 10 * most or size('HLEN', STREAMS) > most
local names = partial and {} or all('SMEMBERS', CONFIGURED)
local served = {}
for _, name in ipairs(names) do served[name] = true end
for _, name in ipairs(partial and {} or all('ZRANGE', ANNOUNCED, 0, -1)) do
  if not served[name] and name:sub(1, 9) == 'endpoint:' then names[#names + 1] = name end
end
local accounts, endpoints = described(names, at, unreadable)

-- By endpoint for the newest; if there are very many, the others are under no name.
local NEWEST = 1000
local dead = {}
for _, member in ipairs(all('ZREVRANGE', DEAD, 0, NEWEST - 1)) do
  local endpoint = member:match('^.*:([^:]+)$') or '?'
  dead[endpoint] = (dead[endpoint] or 0) + 1
end
local buried = size('ZCARD', DEAD)
if buried > NEWEST then dead[''] = buried - NEWEST end

local streams = {PREFIX .. 'results', JOBS}
local seen = {[streams[1]] = true, [streams[2]] = true}
for _, form in ipairs(partial and {} or all('HVALS', STREAMS)) do
  local stream = form:match('^%l+ (.+)$')
  if stream and not seen[stream] then
    seen[stream] = true
    streams[#streams + 1] = stream
  end
end

local workers = {}
for _, name in ipairs(all('ZREVRANGE', PREFIX .. 'workers', 0, ARGV[1] - 1)) do
  local found = table_of(all('HGETALL', PREFIX .. 'worker:' .. name))
  if found.at then workers[#workers + 1] = found end
end

return cjson.encode({
  at = at, jobs = jobs, unreadable = unreadable, accounts = accounts,
  streams = read_streams(streams), workers = workers,
  alarms = {size('ZCARD', KEYS[3]), between(KEYS[3], 0, at + 1), first_of(KEYS[3]) or 0},
  reviews = {size('ZCARD', KEYS[4]), first_of(KEYS[4]) or 0},
  quarantine = size('ZCARD', PREFIX .. 'quarantine'),
  endpoints = endpoints, dead = dead,
  partial = partial, stats = partial and {} or table_of(all('HGETALL', PREFIX .. 'stats')),
})
