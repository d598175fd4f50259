-- seals: (no edge) about how many texts were sealed under a key, as an upper bound
-- KEYS: sealing, stats
-- ARGV: kid, note (1: a worker seals under it from now on; 0: only read)
-- Counted by purpose: for each job its registration (by its sender, and in the ledger), its event,
-- and what its record keeps of that; more for a job that is enqueued again or redriven. A
-- random IV may be drawn 2^32 times under one key, so the count need not be exact.
local EACH = {accepted = 4, again = 2, refused = 3, quarantined = 2, review = 2, redriven = 3,
  corrected = 2, resealed = 1}
local total = 0
for name, times in pairs(EACH) do
  total = total + times * (tonumber(redis.call('HGET', KEYS[2], name) or 0) or 0)
end
if ARGV[2] == '1' then redis.call('HSETNX', KEYS[1], ARGV[1], total) end
return total - (tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or 0) or 0)
