-- reseal: (no edge) write values that were sealed under another key
-- KEYS: record (of a job, a delivery or a message in quarantine), rotation
-- ARGV: actor, ticket, the key's name, then field, its value as the caller read it, its new value,
--       ...
-- Returns how many of the fields have their new values. One that has changed meanwhile stays
-- unchanged: the job ended, or another event was published for it. `ticket`: the same for all
-- records of one act, which is in the audit log once.
local LONGEST = 86400000
if redis.call('GET', KEYS[2]) ~= ARGV[2] then
  record_act(ARGV[1], 'keys.rotate', ARGV[3], '', 'sealed under it')
  redis.call('SET', KEYS[2], ARGV[2], 'PX', LONGEST)
end
local done = 0
for i = 4, #ARGV, 3 do
  local is = redis.call('HGET', KEYS[1], ARGV[i])
  if is == ARGV[i + 1] then redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 2]) end
  if is == ARGV[i + 1] or is == ARGV[i + 2] then done = done + 1 end
end
count('resealed', done)
return done
