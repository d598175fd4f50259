-- survived: (no edge) a reader of the job stream got entries, could not process them, and lives
-- KEYS: jobs
-- ARGV: entry...
-- Returns how many are unprocessed. Their deliveries are counted from 0 again: only readers that
-- died with an entry count. Whoever has it by now keeps it, for as long.
local found = 0
for _, entry in ipairs(ARGV) do
  local one = redis.call('XPENDING', KEYS[1], READERS, entry, entry, 1)[1]
  if one then
    redis.call('XCLAIM', KEYS[1], READERS, one[2], 0, entry, 'IDLE', one[3], 'RETRYCOUNT', 0,
      'JUSTID')
    found = found + 1
  end
end
return found
