-- plain: (no edge) record that unsealed input has arrived
-- KEYS: plain
-- `since`: the first input that may still be in a file; `at`: the last.
local at = now()
redis.call('HSET', KEYS[1], 'at', at)
redis.call('HSETNX', KEYS[1], 'since', at)
return at
