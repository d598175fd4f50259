-- heads: (no edge) the times of the first entries of some streams
-- KEYS: stream...
-- ARGV: order (newest | oldest), from and to (ms), then for each stream after which entry ('': from
--       the start)
-- Returns for each the time (ms); -1 if there is no entry. Reads only.
local newest, times = ARGV[1] == 'newest', {}
local first, till = ARGV[2], ARGV[3]
if newest then first, till = till, first end
for i, key in ipairs(KEYS) do
  local from = ARGV[3 + i] == '' and first or '(' .. ARGV[3 + i]
  local found = redis.call(newest and 'XREVRANGE' or 'XRANGE', key, from, till, 'COUNT', 1)[1]
  times[i] = found and tonumber(found[1]:match('^%d+')) or -1
end
return times
