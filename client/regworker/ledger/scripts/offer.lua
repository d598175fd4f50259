-- offer: (no edge) add a request to the job stream, unless too many wait for an answer in time
-- KEYS: jobs
-- ARGV: most, field, value...
-- Returns 1, or 0 if it was not added.
if redis.call('XLEN', KEYS[1]) >= tonumber(ARGV[1]) then return 0 end
redis.call('XADD', KEYS[1], '*', unpack(ARGV, 2))
return 1
