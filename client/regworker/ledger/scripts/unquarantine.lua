-- unquarantine: (no edge) drop a message from quarantine
-- KEYS: quarantine, entry
-- ARGV: id, how often it had come when the caller read it (0: any), actor, the act's name in the
--       audit log, after, ticket
-- Returns 1, or 0 if there is none, or it was received again since.
if was_done(ARGV[6]) then return 1 end
local moved = ARGV[2] ~= '0' and redis.call('HGET', KEYS[2], 'times') ~= ARGV[2]
-- A requeued message counts as requeued, even if it was received again since.
if redis.call('ZSCORE', KEYS[1], ARGV[1]) and not (moved and ARGV[5] == 'dropped') then
  record_act(ARGV[3], ARGV[4], ARGV[1], 'quarantined', ARGV[5])
end
if moved then return 0 end
redis.call('DEL', KEYS[2])
local gone = redis.call('ZREM', KEYS[1], ARGV[1])
if gone == 1 then note_done(ARGV[6]) end
return gone
