-- find: (no edge) find jobs in a slice of one index, by their records
-- KEYS: index
-- ARGV: kind (zset | stream), base (the offset of a zset's scores from the time), order (newest |
--       oldest), from and to (ms), after ('': from the start; of a zset '<score> <id>', of a stream
--       an entry), at most how many to read, and to find, state, provider, account, reason ('':
--       any), then name, value of the metadata...
-- Returns {1 if that was all, after which to continue, its time (ms), how many were read, {entry,
-- time, id, field...}, ...}. Reads only. Long records end a slice early.
local MOST_BYTES, MOST_OF_ONE_TIME = 100000, 6000
local newest, most = ARGV[3] == 'newest', tonumber(ARGV[7])
local low, high = tonumber(ARGV[4]), tonumber(ARGV[5])
local seen = {}

local function zset()
  local base = tonumber(ARGV[2])
  local score, last = ARGV[6]:match('^(%d+) (.*)$')
  score = tonumber(score)
  local first, till = string.format('%.0f', base + low), string.format('%.0f', base + high)
  if newest then first, till = till, first end
  if score then first = string.format('%.0f', score) end
  local skip = 0
  -- Entries of one ms are ordered by their ids; those already seen are skipped.
  for _ = 1, math.ceil(MOST_OF_ONE_TIME / most) do
    local page = redis.call(newest and 'ZREVRANGEBYSCORE' or 'ZRANGEBYSCORE', KEYS[1], first, till,
      'WITHSCORES', 'LIMIT', skip, most)
    for i = 1, #page, 2 do
      local at, id = tonumber(page[i + 1]), page[i]
      local passed = score == at and (id == last or newest == (id > last))
      if not passed then seen[#seen + 1] = {id, at - base, string.format('%.0f', at) .. ' ' .. id} end
    end
    if seen[1] or #page < 2 * most then return #page < 2 * most end
    skip = skip + most
  end
  return true
end

local function stream()
  local first, till = string.format('%.0f', low), string.format('%.0f', high)
  if newest then first, till = till, first end
  if ARGV[6] ~= '' then first = '(' .. ARGV[6] end
  local page = redis.call(newest and 'XREVRANGE' or 'XRANGE', KEYS[1], first, till, 'COUNT', most)
  for _, entry in ipairs(page) do
    seen[#seen + 1] = {entry[2][2], tonumber(entry[1]:match('^%d+')), entry[1]}
  end
  return #page < most
end

-- The end of a text is found from behind: a pattern would be tried at each of its characters.
local function last_line(log)
  local from = log:reverse():find('\n', 2, true)
  return log:sub(from and 1 - from or 1):match('^[^\n]*')
end

local function wanted(job, at)
  if job[1] ~= ARGV[9] then return false end
  -- An earlier end of a job that a person reopened.
  if ARGV[1] == 'stream' and at < tonumber(job[10] or 0) then return false end
  if ARGV[10] ~= '' and job[2] ~= ARGV[10] then return false end
  if ARGV[11] ~= '' and job[3] ~= ARGV[11] then return false end
  if ARGV[12] ~= '' then
    local said = (job[6] or '') .. '\n' .. job[13]
    if not said:lower():find(ARGV[12]:lower(), 1, true) then return false end
  end
  if ARGV[13] then
    local read, metadata = pcall(cjson.decode, job[12] or '{}')
    if not read or type(metadata) ~= 'table' then return false end
    for i = 13, #ARGV, 2 do
      local value = metadata[ARGV[i]]
      if value == nil or tostring(value) ~= ARGV[i + 1] then return false end
    end
  end
  return true
end

local all = ARGV[1] == 'zset' and zset() or ARGV[1] == 'stream' and stream()
local answer, after, time, bytes = {0, ARGV[6], 0, 0}, nil, nil, 0
for i, one in ipairs(seen) do
  if #answer - 4 >= tonumber(ARGV[8]) or bytes > MOST_BYTES then all = false break end
  after, time, answer[4] = one[3], one[2], i
  local job = peek('HMGET', job_key(one[1]), 'state', 'provider', 'account', 'key', 'lane', 'why',
    'attempts', 'accepted_at', 'due_at', 'finished_at', 'deadline_at', 'metadata', 'log',
    'fence', 'reopened', 'forgotten_at')
  for j = 1, job and 16 or 0 do bytes = bytes + #(job[j] or '') end
  if job and job[1] and not job[16] then
    job[13] = last_line(job[13] or '')
    if wanted(job, one[2]) then
      job[12] = ''
      for j = 1, 15 do job[j] = job[j] or '' end
      answer[#answer + 1] = {one[3], string.format('%.0f', one[2]), one[1], unpack(job, 1, 15)}
    end
  end
end
answer[1] = all and 1 or 0
if after then answer[2], answer[3] = after, string.format('%.0f', time) end
return answer
