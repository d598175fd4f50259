-- identity: (no edge) which server has the ledger, and whether it may have lost something
-- KEYS: identity, the worker's own mark
-- ARGV: the mark that the worker remembers, how long it and the number of replicas are kept (ms),
--       how many replicas must have the worker's writes, kept ('1': writes are on disk before they
--       are answered), fresh_ms, margin_ms, then, for a new connection, the server's run id, and
--       job id and fence of a claim that the worker remembers ('', 0: none); for a heartbeat none
-- Returns {mark, doubted (1 | 0)}. A restarted server has a run id that the ledger does not know
-- yet, and a promoted one has its primary's replication id as its second. Then, unless it is sure
-- that nothing is lost, each job that was accepted until now plus a margin is looked up before it
-- is sent (`claim`). Two cases are sure. First, a recent restart of a server that syncs before it
-- answers and had no replica (which might have been started as the primary). Second, a replica in
-- its primary's place, if recent workers waited for all replicas: while one is promoted, a live
-- primary may continue with another. A mark below the one that its worker remembers proves a loss,
-- and so does a claim that is not in the ledger.
local at, remembered, waits, kept = now(), tonumber(ARGV[1]), tonumber(ARGV[3]), ARGV[4]
local fresh_ms, run, claimed, fence = tonumber(ARGV[5]), ARGV[7], ARGV[8] or '', tonumber(ARGV[9] or 0)
local seen = redis.call('HMGET', KEYS[1], 'run_id', 'replid', 'kept', 'heard_at', 'doubted_run', 'replicas',
  'unwaited_at', 'replicas_at')
local mark, doubted = tonumber(redis.call('GET', KEYS[2]) or 0), 0
local said = redis.pcall('INFO', 'replication') -- hidden by some managed services
if type(said) ~= 'string' then said = '' end
local replid, before = said:match('master_replid:(%x+)') or '', said:match('master_replid2:(%x+)') or ''
-- A server that hides its ids has the same ones after each failover.
local lost = mark < remembered
if claimed ~= '' then
  local held = redis.pcall('HMGET', job_key(claimed), 'fence', 'forgotten_at')
  lost = lost or not held[2] and (tonumber(held[1]) or 0) < fence
end
local doubtful = run and lost and (seen[5] ~= run or run == 'hidden')
-- A primary that was demoted and promoted again keeps its run id, but has another server's data.
local promoted = before:find('[^0]')
if seen[1] and (run and seen[1] ~= run or promoted and seen[2] ~= replid) then
  local fresh = at - tonumber(seen[4] or 0) <= fresh_ms
  local sure = seen[3] == '1' and kept == '1' and fresh and not promoted and seen[6] == '0'
  if promoted and before == seen[2] then sure = waits > 0 and at - tonumber(seen[7] or 0) > fresh_ms end
  doubtful = doubtful or not sure
end
run = run or seen[1]
if doubtful then
  doubted = 1
  redis.call('HSET', KEYS[1], 'doubted_at', at, 'doubt_until', at + ARGV[6], 'doubted_run', run)
end
-- With each heartbeat: a primary changes its replication id when its first replica connects.
if run then redis.call('HSET', KEYS[1], 'run_id', run, 'replid', replid) end
mark = math.max(mark, remembered) + 1
redis.call('SET', KEYS[2], mark, 'PX', ARGV[2])
-- The largest recent number: a replica that is away comes back, and may be promoted. By their
-- addresses: a replica that reconnects may be listed twice for a while, and a tool that only reads
-- has no port.
local addresses, replicas = {}, 0
for address, port in said:gmatch('slave%d+:(ip=[^,]*,port=(%d+))') do
  if port ~= '0' and not addresses[address] then addresses[address], replicas = true, replicas + 1 end
end
if said == '' then replicas = 99 end
local most = tonumber(seen[6] or 0)
local since = at - tonumber(seen[8] or at)
if replicas >= most or since > tonumber(ARGV[2]) then
  redis.call('HSET', KEYS[1], 'replicas', replicas, 'replicas_at', at)
else
  replicas = most
end
redis.call('HSET', KEYS[1], 'heard_at', at, 'kept', kept)
-- From any worker: one of them may have another setting.
if waits < replicas then redis.call('HSET', KEYS[1], 'unwaited_at', at) end
return {mark, doubted}
