-- erase: (no edge) claim the next rewrite of the files, if it is due
-- KEYS: plain
-- ARGV: period_ms, quiet_ms (for how long nothing plain has arrived, as far as is known)
-- Returns when it began, or nothing. Due when it is quiet, or has not been quiet for a period; and
-- a period after the last one began, whoever did that.
local at = now()
local found = redis.call('HMGET', KEYS[1], 'at', 'since', 'begun')
if not found[1] then return nil end
local period = tonumber(ARGV[1])
local waited = at - tonumber(found[1]) >= tonumber(ARGV[2]) or at - tonumber(found[2]) >= period
if not waited or (found[3] and at - tonumber(found[3]) < period) then return nil end
redis.call('HSET', KEYS[1], 'begun', at)
return at
