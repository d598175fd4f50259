-- mentions: (no edge) find the entries of a slice of a stream that contain a job's id
-- KEYS: stream
-- ARGV: after which entry ('-': from the first), the job's id, at most how many entries to read,
--       bytes after which a slice ends, bytes of the largest entry: a larger one is none of ours
-- Returns {after which to continue ('': that was all), {entry, field, value, ...}, ...}. Also
-- sealed refusals: only a caller with a key can read which job they name. Reads only.
local after, seen, bytes, answer = ARGV[1], 0, 0, {''}
while seen < tonumber(ARGV[3]) and bytes < tonumber(ARGV[4]) do
  local from = after == '-' and '-' or '(' .. after
  local entry = redis.call('XRANGE', KEYS[1], from, '+', 'COUNT', 1)[1]
  if not entry then return answer end
  after, seen = entry[1], seen + 1
  local wanted, size, one = false, 0, {after}
  for i, value in ipairs(entry[2]) do
    size, one[i + 1] = size + #value, value
    wanted = wanted or value:find(ARGV[2], 1, true) or (one[i] == 'id' and value:sub(1, 8) == 'refused-')
  end
  bytes = bytes + size
  if wanted and size <= tonumber(ARGV[5]) then answer[#answer + 1] = one end
end
answer[1] = after
return answer
