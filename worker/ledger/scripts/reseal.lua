-- reseal: (no edge) put what is kept sealed under another key
-- KEYS: record (of a job, a delivery or a message in quarantine)
-- ARGV: field, its value as the caller read it, its new value, ... for each
-- Returns how many of the fields have their new values. One that has changed meanwhile is left as it
-- is: the job is over, or another event was told of it.
local done = 0
for i = 1, #ARGV, 3 do
  local is = redis.call('HGET', KEYS[1], ARGV[i])
  if is == ARGV[i + 1] then redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 2]) end
  if is == ARGV[i + 1] or is == ARGV[i + 2] then done = done + 1 end
end
return done
