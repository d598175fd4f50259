-- enable: (an endpoint) what is due to it is sent again
-- KEYS: endpoint
-- ARGV: ticket
-- Returns 1, or 0 where it was not disabled.
local e = table_of(redis.call('HGETALL', KEYS[1]))
-- Once more: the answer was lost on the way.
if e.ticket == ARGV[1] then return 1 end
if e.disabled ~= '1' then return 0 end
redis.call('HSET', KEYS[1], 'disabled', '0', 'ticket', ARGV[1])
-- Its past is forgiven: it would be disabled again at its first failure.
redis.call('HDEL', KEYS[1], 'failing_since', 'failed_at', 'failures')
return 1
