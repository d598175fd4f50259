-- left: (no edge) take over a dead reader's entries of a stream, with their sizes checked first
-- KEYS: stream
-- ARGV: group, reader, idle_ms after which an entry counts as left, cursor ('0-0': from the start),
--       at most how many, and bytes, of a page, bytes of the largest entry
-- Returns {cursor, entry...}, entries in the form of judged() in _lib; cursor '0-0': that was all.
-- Of the job stream also entries that were read, and no longer belong to any reader (somebody
-- removed the reader with its entries): nobody would get them again.
-- A client may choose an entry's id; after the highest id a server accepts no more entries. So an
-- empty stream at its highest id is removed, and its readers create it again.
local LAST_ID = '18446744073709551615-18446744073709551615'
local stream, group, reader, idle, cursor = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local page = page_of(tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]))

-- Pending entries are read ten at a time; a group may have very many.
local LOOKS = 100
for _ = 1, LOOKS do
  local answer = redis.call('XAUTOCLAIM', stream, group, reader, idle, cursor, 'COUNT', 1)
  cursor = answer[1]
  for _, entry in ipairs(answer[2]) do page.add(entry, times_of(stream, group, entry[1])) end
  if cursor == '0-0' or page.full() then break end
end

if stream == JOBS and cursor == '0-0' then
  local from, last = '-', nil
  for _, flat in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local found = table_of(flat)
    if found.name == group then last = found['last-delivered-id'] end
  end
  local seen = page_of(tonumber(ARGV[5]), tonumber(ARGV[6]), 0)
  while not seen.full() and not page.full() do
    local entry = redis.call('XRANGE', stream, from, last, 'COUNT', 1)[1]
    if not entry then break end
    seen.add(entry, 0)
    if times_of(stream, group, entry[1]) == 0 then
      redis.call('XCLAIM', stream, group, reader, 0, entry[1], 'FORCE', 'RETRYCOUNT', 1, 'JUSTID')
      page.add(entry, 1)
    end
    from = '(' .. entry[1]
  end
  if last == LAST_ID and redis.call('XLEN', stream) == 0 then redis.pcall('DEL', stream) end
end
return {cursor, unpack(page.found)}
