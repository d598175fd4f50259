-- resign: (no edge) a worker that stops cleanly signs off
-- KEYS: workers, worker
-- ARGV: name
-- Returns 1.
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('DEL', KEYS[2])
return 1
