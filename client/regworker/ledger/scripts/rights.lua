-- rights: (no edge) which of some commands its caller may not run here; none is run
-- KEYS: none
-- ARGV: a command each, with its arguments, separated by spaces
-- Returns the refused commands
local refused = {}
for _, command in ipairs(ARGV) do
  local words = {}
  for word in command:gmatch('%S+') do words[#words + 1] = word end
  local known, may = pcall(redis.acl_check_cmd, unpack(words))
  if not (known and may) then refused[#refused + 1] = command end
end
return refused
