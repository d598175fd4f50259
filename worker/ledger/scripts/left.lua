-- left: (no edge) take over entries of the job stream that a dead reader left
-- KEYS: jobs
-- ARGV: reader, idle_ms after which an entry counts as left, at most how many
-- Returns {entry, how often it was read, {field, value, ...}, ...}. Entries that were read, and that
-- no reader has any more (somebody removed it, and what it had with it), are taken over too: nobody
-- would ever be given them again. Once more is harmless: they are the reader's own then.
local reader, idle, most = ARGV[1], ARGV[2], tonumber(ARGV[3])
local groups = redis.call('EXISTS', KEYS[1]) == 1 and redis.call('XINFO', 'GROUPS', KEYS[1]) or {}
local answer = {}
for _, flat in ipairs(groups) do
  local group = table_of(flat)
  if group.name == READERS then
    local taken = redis.call('XAUTOCLAIM', KEYS[1], READERS, reader, idle, '0-0', 'COUNT', most)[2]
    local read = redis.call('XRANGE', KEYS[1], '-', group['last-delivered-id'], 'COUNT', most)
    for _, entry in ipairs(read) do
      if #redis.call('XPENDING', KEYS[1], READERS, entry[1], entry[1], 1) == 0 then
        redis.call('XCLAIM', KEYS[1], READERS, reader, 0, entry[1], 'FORCE', 'JUSTID')
        taken[#taken + 1] = entry
      end
    end
    for _, entry in ipairs(taken) do
      local pending = redis.call('XPENDING', KEYS[1], READERS, entry[1], entry[1], 1)[1]
      answer[#answer + 1] = entry[1]
      answer[#answer + 1] = pending and pending[4] or 0
      answer[#answer + 1] = entry[2]
    end
  end
end
return answer
