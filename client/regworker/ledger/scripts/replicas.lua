-- replicas: (no edge) how many replicas must have a write before it counts, announced by a worker
-- KEYS: replicas
-- ARGV: starts ('1': valid from now on; '0': only if the ledger has no value), wanted, timeout_ms
if ARGV[1] == '1' or redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('HSET', KEYS[1], 'wanted', ARGV[2], 'timeout_ms', ARGV[3])
end
return 1
