-- mend: (no edge) put jobs' entries in the indices right, by their records
-- KEYS: open, later
-- ARGV: id...
-- Returns how many. An older version's worker knows no index, and leaves entries that are not true.
for _, id in ipairs(ARGV) do
  redis.call('ZREM', KEYS[2], id)
  local job = load_job(id)
  if job then
    place(id, job, '', 0)
  else
    redis.call('ZREM', KEYS[1], id)
  end
end
return #ARGV
