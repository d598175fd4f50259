-- read: (no edge) the next entries of a stream for a group's reader, with their sizes checked first
-- KEYS: stream
-- ARGV: group, reader, the last entry that it knows ('-': none), whether it starts again (1), at
--       most how many, and bytes, of a page, bytes of the largest entry
-- Returns entries in the form of judged() in _lib. First the reader's entries that it does not
-- know: taken by a blocking read whose answer it skipped, or lost with an answer. Then new ones;
-- but not for a reader that starts again, whose entries count as delivered once more.
local stream, group, reader, again = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[4])
local page = page_of(tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]))
local from = ARGV[3] == '-' and '-' or '(' .. ARGV[3]
for _, one in ipairs(redis.call('XPENDING', stream, group, from, '+', ARGV[5], reader)) do
  if page.full() then return page.found end
  local times = one[4] + again
  -- A deleted entry is not returned, and is no longer pending.
  local entry = redis.call('XCLAIM', stream, group, reader, 0, one[1], 'RETRYCOUNT', times)[1]
  if entry then page.add(entry, times) end
end
while again == 0 and not page.full() do
  local new = redis.call('XREADGROUP', 'GROUP', group, reader, 'COUNT', 1, 'streams', stream, '>')
  if not new then break end
  page.add(new[1][2][1], 1)
end
return page.found
