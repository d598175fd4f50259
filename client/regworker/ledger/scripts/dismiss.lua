-- dismiss: (no edge) remove readers of the job stream that are gone, and left nothing unfinished
-- KEYS: jobs
-- ARGV: the reader that stops now ('': none), idle_ms after which another is gone for good
-- Returns how many were removed. A reader that left entries stays until others have taken them
-- over: its removal would remove the entries from the group.
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local forgotten = 0
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  if table_of(group).name == READERS then
    for _, flat in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], READERS)) do
      local reader = table_of(flat)
      local gone = reader.name == ARGV[1] or reader.idle > tonumber(ARGV[2])
      if gone and reader.pending == 0 then
        redis.call('XGROUP', 'DELCONSUMER', KEYS[1], READERS, reader.name)
        forgotten = forgotten + 1
      end
    end
  end
end
return forgotten
