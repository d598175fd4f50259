-- announce: (no edge) what a worker can serve: when it starts, and with each heartbeat
-- KEYS: configured, announced, configured:new
-- ARGV: starts ('1': its limits and streams are valid from now on; '0': only if the ledger has
--       none), gone_ms (0: no name is dropped), how many names the worker announces in all (0:
--       another command announces the rest), n accounts, then provider, account, interval_ms,
--       burst_ms, max_in_flight for each, n endpoints, then name, stream ('plain <key>', 'sealed
--       <key>'; empty if it is none) for each, then the names of all these and of keys
-- While no name is accepted, producers try again later; as soon as one is, a job that needs
-- another is refused for good. So the first names are collected in a set of their own, and become
-- valid together. If some are missing there (the ledger was emptied between two commands), the next
-- heartbeat adds them.
-- A name that no worker has announced for gone_ms is not accepted any more. Its limits and its
-- stream stay: jobs that were accepted before need them. Its last announcement is kept for 30 days.
local KEPT_NAMES, COLLECTED = 2592000000, 60000
local at, starts, gone = now(), ARGV[1] == '1', tonumber(ARGV[2])
local i = 5
for _ = 1, tonumber(ARGV[4]) do
  local account = PREFIX .. 'account:' .. ARGV[i] .. ':' .. ARGV[i + 1]
  -- One account's key of a wrong type must not prevent a worker from serving the others.
  local there = peek('HEXISTS', account, 'interval')
  if there == 0 or (there and starts) then
    redis.call('HSET', account, 'interval', ARGV[i + 2], 'burst', ARGV[i + 3],
      'max_in_flight', ARGV[i + 4])
  end
  i = i + 5
end
local last = i + 2 * tonumber(ARGV[i])
for j = i + 1, last, 2 do
  if ARGV[j + 1] ~= '' then
    redis.call(starts and 'HSET' or 'HSETNX', STREAMS, ARGV[j], ARGV[j + 1])
  elseif starts then
    redis.call('HDEL', STREAMS, ARGV[j])
  end
end

-- The arguments of a command are on Lua's stack, which holds 8000 values.
local TOGETHER = 1000
local function slices(all, from, to, command)
  for first = from, to, TOGETHER do
    command(unpack(all, first, math.min(first + TOGETHER - 1, to)))
  end
end

local first, scores = redis.call('EXISTS', KEYS[1]) == 0, {}
for j = last + 1, #ARGV do scores[#scores + 1], scores[#scores + 2] = at, ARGV[j] end
slices(scores, 1, #scores, function(...) redis.call('ZADD', KEYS[2], ...) end)
local names = first and KEYS[3] or KEYS[1]
slices(ARGV, last + 1, #ARGV, function(...) redis.call('SADD', names, ...) end)
if first then
  local total, collected = tonumber(ARGV[3]), redis.call('SCARD', KEYS[3])
  if total > 0 and collected >= total then
    redis.call('PERSIST', KEYS[3])
    redis.call('RENAME', KEYS[3], KEYS[1])
  elseif collected > 0 then
    redis.call('PEXPIRE', KEYS[3], COLLECTED)
  end
end

-- There may be thousands of names to drop; they are dropped once, and not with each heartbeat.
if gone > 0 then
  local present = redis.call('ZCOUNT', KEYS[2], string.format('(%.0f', at - gone), '+inf')
  if redis.call('SCARD', KEYS[1]) > present then
    local forgotten = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', at - gone)
    slices(forgotten, 1, #forgotten, function(...) redis.call('SREM', KEYS[1], ...) end)
  end
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', at - gone - KEPT_NAMES)
end
return 1
