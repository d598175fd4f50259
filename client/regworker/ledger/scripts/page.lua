-- page: (no edge) read a page of a stream, without a group, with the entries' sizes checked first
-- KEYS: stream
-- ARGV: after which entry ('-': from the first), at most how many, and bytes, of a page, bytes of
--       the largest entry
-- Returns entries in the form of judged() in _lib. Reads only.
local page = page_of(tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]))
local from = ARGV[1] == '-' and '-' or '(' .. ARGV[1]
while not page.full() do
  local entry = redis.call('XRANGE', KEYS[1], from, '+', 'COUNT', 1)[1]
  if not entry then break end
  page.add(entry, 0)
  from = '(' .. entry[1]
end
return page.found
