-- replicas: (no edge) what workers announce to all clients: how many replicas must have a write before
--           it counts, and how long a finished job's record is kept at least
-- KEYS: replicas
-- ARGV: starts ('1': valid from now on; '0': only if the ledger has no value), wanted, timeout_ms,
--       retention_ms
if ARGV[1] == '1' or redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('HSET', KEYS[1], 'wanted', ARGV[2], 'timeout_ms', ARGV[3],
    'retention_ms', ARGV[4])
end
return 1
