-- announce_wakes: (no edge) how to wake workers through the broker, if the ledger is on it
-- KEYS: waking
-- ARGV: keep_ms, then lane, its list, the envelope of a wake-up (as put() in _lib fills it) for
--       each
-- Without lanes, the broker is another server: then wake-ups are relayed.
redis.call('DEL', KEYS[1])
for i = 2, #ARGV, 3 do
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1] .. '\n' .. ARGV[i + 2])
  redis.call('PEXPIRE', KEYS[1], ARGV[1])
end
return 1
