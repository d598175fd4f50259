-- repair: (no edge) correct jobs' entries in the indices, by their records
-- KEYS: open, later
-- ARGV: id...
-- Returns how many.
for _, id in ipairs(ARGV) do
  redis.call('ZREM', KEYS[2], id)
  local job = peek('HLEN', job_key(id)) and load_job(id)
  if job then
    place(id, job, '', 0)
  else
    redis.call('ZREM', KEYS[1], id)
  end
end
return #ARGV
