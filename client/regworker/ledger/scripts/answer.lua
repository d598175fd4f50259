-- answer: (no edge) answer a request of the job stream, for the sender that waits
-- KEYS: answer, jobs
-- ARGV: id, the answer, how long it is kept in ms, the entry
-- This removes the entry. The answer is announced on the channel of a job's end, by a name that no
-- job has.
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
redis.call('PUBLISH', PREFIX .. 'done:' .. ARGV[1], 'answer')
handled(ARGV[4])
return 1
