-- unquarantine: (no edge) drop a message from quarantine
-- KEYS: quarantine, entry
-- ARGV: id, how often it had come when the caller looked (0: whatever)
-- Returns 1, or 0 where there is none, or it has come again since.
if ARGV[2] ~= '0' and redis.call('HGET', KEYS[2], 'times') ~= ARGV[2] then return 0 end
redis.call('DEL', KEYS[2])
return redis.call('ZREM', KEYS[1], ARGV[1])
