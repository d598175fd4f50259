-- disable: (an endpoint) nothing is sent to it any more, until an operator enables it
-- KEYS: endpoint
-- ARGV: number of this time, failing since as the caller saw it ('': the endpoint itself said so),
--       since (ms), why, then the event as for tell() in _lib
-- Returns 1, or 0: enabled, or has accepted something, since the caller read it.
local at = now()
local e = table_of(redis.call('HGETALL', KEYS[1]))
-- Disabled already: by another worker that saw the same, or by this command, whose first answer was
-- lost.
if e.disabled == '1' then return 1 end
if (tonumber(e.disables) or 0) + 1 ~= tonumber(ARGV[1]) then return 0 end
if ARGV[2] ~= '' and e.failing_since ~= ARGV[2] then return 0 end
-- The event goes first, as in settle.
tell('', at, ARGV, 5)
redis.call('HSET', KEYS[1], 'disabled', '1', 'disables', ARGV[1], 'since', ARGV[3],
  'disabled_at', at, 'why', ARGV[4])
count('endpoints_disabled')
return 1
