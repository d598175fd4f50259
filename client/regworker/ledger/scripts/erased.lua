-- erased: (no edge) the files were rewritten, or why they were not
-- KEYS: plain
-- ARGV: begun, quiet_ms, why not ('' if they were)
-- What arrived shortly before it began may have been in work then, and be in the new files: the
-- mark stays for the next one.
if ARGV[3] ~= '' then
  redis.call('HSET', KEYS[1], 'failed', ARGV[3])
  return 0
end
redis.call('HDEL', KEYS[1], 'failed')
redis.call('HSET', KEYS[1], 'done', ARGV[1])
local at = tonumber(redis.call('HGET', KEYS[1], 'at') or ARGV[1])
if at >= tonumber(ARGV[1]) - tonumber(ARGV[2]) then return 0 end
redis.call('HDEL', KEYS[1], 'at', 'since')
return 1
