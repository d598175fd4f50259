-- repair: (no edge) correct the oldest entries of the index of unfinished jobs, by their records
-- KEYS: open, later
-- ARGV: how many of each state and lane are compared
-- Returns how many were wrong.
local corrected = 0
-- Neither NaN nor infinite.
local function is_number(value) return value - value == 0 end
for state, rank in pairs(RANKS) do
  for i, lane in ipairs({'live', 'bulk'}) do
    local low = (rank + i - 1) * RANK
    local oldest = redis.call('ZRANGE', KEYS[1], string.format('%.0f', low),
      string.format('(%.0f', low + RANK), 'BYSCORE', 'LIMIT', 0, ARGV[1])
    for _, id in ipairs(oldest) do
      local seen = peek('HMGET', job_key(id), 'state', 'lane')
      if not seen or seen[1] ~= state or (seen[2] or USUAL.lane) ~= lane then
        redis.call('ZREM', KEYS[2], id)
        local job = seen and load_job(id)
        if job and not (is_number(job.accepted_at) and is_number(job.due_at)) then
          job = nil  -- no place in an order: it is unreadable, and reported as that
        end
        if job then
          place(id, job, '', 0)
        else
          redis.call('ZREM', KEYS[1], id)
        end
        corrected = corrected + 1
      end
    end
  end
end
return corrected
