-- format: (no edge) the form of the ledger's records; a worker that starts says which it writes
-- KEYS: format
-- ARGV: the form this worker writes
-- Returns the ledger's form then. It never falls: whoever writes an older one is to keep out.
local found = tonumber(redis.call('GET', KEYS[1]) or '0')
local ours = tonumber(ARGV[1])
if found >= ours then return found end
redis.call('SET', KEYS[1], ARGV[1])
return ours
