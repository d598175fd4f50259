-- look: (no edge) read a job's record
-- KEYS: job
-- Returns {field, value, ...}, empty where there is none.
return redis.call('HGETALL', KEYS[1])
