-- serve: (no edge) the limits of the endpoints to which a worker delivers
-- KEYS: none that could be named before the endpoints are
-- ARGV: starts ('1': valid from now on; '0': only if the ledger has none), dead_retention_ms, then
--       endpoint, max_in_flight for each
for i = 3, #ARGV, 2 do
  local endpoint = endpoint_keys(ARGV[i])
  -- As in announce.
  local there = peek('HEXISTS', endpoint, 'max_in_flight')
  if there == 0 or (there and ARGV[1] == '1') then
    redis.call('HSET', endpoint, 'max_in_flight', ARGV[i + 1], 'dead_retention', ARGV[2])
  end
end
return 1
