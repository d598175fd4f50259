-- edge: (no edge) the id of the first entry of a stream after another, or of the last one
-- KEYS: stream
-- ARGV: after which entry ('-': the first of all; '+': the last of all)
-- Returns its id, '' if there is none. Its content stays at the server. Reads only.
local found
if ARGV[1] == '+' then
  found = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
else
  local from = ARGV[1] == '-' and '-' or '(' .. ARGV[1]
  found = redis.call('XRANGE', KEYS[1], from, '+', 'COUNT', 1)[1]
end
return found and found[1] or ''
