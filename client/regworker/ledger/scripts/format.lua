-- format: (no edge) the version of the ledger's records; a starting worker says which it writes
-- KEYS: format
-- ARGV: the version that this worker writes
-- Returns the ledger's version after that. It never falls: a worker with an older one must not
-- start.
local found = tonumber(redis.call('GET', KEYS[1]) or '0')
local ours = tonumber(ARGV[1])
if found >= ours then return found end
redis.call('SET', KEYS[1], ARGV[1])
return ours
