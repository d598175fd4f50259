-- trim: (no edge) drop a stream's old entries that every group has read and acknowledged
-- KEYS: stream
-- ARGV: retention_ms, at most how many
-- Returns {how many were dropped, group...}: those that hold back entries past the retention. Once
-- more drops no more than once would have, later.
if redis.call('TYPE', KEYS[1]).ok ~= 'stream' then return {0} end

-- Parts of an id are 64-bit numbers, which a number of Lua's can't hold: compared as texts.
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
  -- An entry too many is kept where its number is too long to be counted on.
  if #seq > 15 then return id end
  return ms .. '-' .. string.format('%.0f', tonumber(seq) + 1)
end

local cut = string.format('%.0f-0', math.max(0, now() - tonumber(ARGV[1])))
local bound, answer = cut, {0}
for _, flat in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local group = table_of(flat)
  -- What was delivered first and is not acknowledged; else the first that was not delivered.
  local needed = redis.call('XPENDING', KEYS[1], group.name)[2]
    or following(group['last-delivered-id'])
  if before(needed, cut) and redis.call('XRANGE', KEYS[1], needed, '(' .. cut, 'COUNT', 1)[1] then
    answer[#answer + 1] = group.name
  end
  if before(needed, bound) then bound = needed end
end
local old = redis.call('XRANGE', KEYS[1], '-', '(' .. bound, 'COUNT', ARGV[2])
if old[1] then
  answer[1] = redis.call('XTRIM', KEYS[1], 'MINID', '=', following(old[#old][1]))
end
return answer
