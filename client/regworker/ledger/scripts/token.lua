-- token: (no edge) create, change or revoke a token of the HTTP API
-- KEYS: tokens
-- ARGV: id, the new token, as the caller read it ('': it is new), actor, the act's name in the
--       audit log, before, after
-- Returns 1, or 0 if it is not as the caller read it.
local is = redis.call('HGET', KEYS[1], ARGV[1]) or ''
-- A repeat: the first answer was lost.
if is == ARGV[2] then return 1 end
if is ~= ARGV[3] then return 0 end
record_act(ARGV[4], ARGV[5], ARGV[1], ARGV[6], ARGV[7])
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
