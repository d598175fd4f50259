-- trim: (no edge) drop a stream's old entries that every group has read and acknowledged
-- KEYS: stream
-- ARGV: retention_ms, at most how many
-- Returns {how many were dropped, group...}: the groups that still need older entries. A repeat
-- drops nothing that a later run would not have dropped.
if redis.call('TYPE', KEYS[1]).ok ~= 'stream' then return {0} end

-- Parts of an id are 64-bit numbers, which Lua's numbers cannot represent: compared as texts.
local function less(a, b)
  if #a ~= #b then return #a < #b end
  return a < b
end

local function before(a, b)
  local a_ms, a_seq = a:match('^(%d+)-(%d+)$')
  local b_ms, b_seq = b:match('^(%d+)-(%d+)$')
  if a_ms ~= b_ms then return less(a_ms, b_ms) end
  return less(a_seq, b_seq)
end

local function following(id)
  local ms, seq = id:match('^(%d+)-(%d+)$')
  -- If the number is too long to be exact, one entry too many is kept.
  if #seq > 15 then return id end
  return ms .. '-' .. string.format('%.0f', tonumber(seq) + 1)
end

local cut = string.format('%.0f-0', math.max(0, now() - tonumber(ARGV[1])))
local bound, answer = cut, {0}
for _, flat in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local group = table_of(flat)
  -- The oldest entry that is not acknowledged; otherwise the first that was not delivered.
  local needed = redis.call('XPENDING', KEYS[1], group.name)[2]
    or following(group['last-delivered-id'])
  if before(needed, cut) and redis.call('XRANGE', KEYS[1], needed, '(' .. cut, 'COUNT', 1)[1] then
    answer[#answer + 1] = group.name
  end
  if before(needed, bound) then bound = needed end
end
-- One at a time, and at most so many bytes: the server copies what a script reads.
local old, from = page_of(tonumber(ARGV[2]), 64 * 1024 * 1024, 0), '-'
local last
while not old.full() do
  local entry = redis.call('XRANGE', KEYS[1], from, '(' .. bound, 'COUNT', 1)[1]
  if not entry then break end
  old.add(entry, 0)
  last = entry[1]
  from = '(' .. last
end
if last then answer[1] = redis.call('XTRIM', KEYS[1], 'MINID', '=', following(last)) end
return answer
