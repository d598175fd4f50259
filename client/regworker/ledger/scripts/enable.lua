-- enable: (an endpoint) what is due to it is sent again
-- KEYS: endpoint
-- ARGV: ticket, actor, name
-- Returns 1, or 0 if it was not disabled.
local e = table_of(redis.call('HGETALL', KEYS[1]))
-- A repeat: the first answer was lost.
if e.ticket == ARGV[1] then return 1 end
if e.disabled ~= '1' then return 0 end
record_act(ARGV[2], 'endpoint.enable', ARGV[3], 'disabled', 'enabled')
redis.call('HSET', KEYS[1], 'disabled', '0', 'ticket', ARGV[1])
-- Its failures are reset: otherwise it would be disabled again at its first failure.
redis.call('HDEL', KEYS[1], 'failing_since', 'failed_at', 'failures')
return 1
