-- announce: (no edge) what a worker can serve: when it starts, and with each heartbeat
-- KEYS: configured, announced
-- ARGV: starts ('1': its limits and streams are valid from now on; '0': only if the ledger has
--       none), gone_ms (0: no name is dropped), n accounts, then provider, account, interval_ms,
--       burst_ms, max_in_flight for each, n endpoints, then name, stream ('plain <key>', 'sealed
--       <key>'; empty if it is none) for each, n names of all these and of keys, then name,
--       ..., then the names that are accepted from now on
-- A name that no worker has announced for gone_ms is not accepted any more. Its limits and its
-- stream stay: jobs that were accepted before need them. Its last announcement is kept for 30 days.
local KEPT_NAMES = 2592000000
local at, starts, gone = now(), ARGV[1] == '1', tonumber(ARGV[2])
local i = 4
for _ = 1, tonumber(ARGV[3]) do
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

local accepted, scores = last + 2 + tonumber(ARGV[last + 1]), {}
for j = last + 2, accepted - 1 do scores[#scores + 1], scores[#scores + 2] = at, ARGV[j] end
slices(scores, 1, #scores, function(...) redis.call('ZADD', KEYS[2], ...) end)
slices(ARGV, accepted, #ARGV, function(...) redis.call('SADD', KEYS[1], ...) end)

local forgotten = gone > 0 and redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', at - gone) or {}
if forgotten[1] then
  slices(forgotten, 1, #forgotten, function(...) redis.call('SREM', KEYS[1], ...) end)
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', at - gone - KEPT_NAMES)
end
return 1
