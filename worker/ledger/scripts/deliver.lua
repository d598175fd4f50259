-- deliver: (a delivery) pending: claimed for one try
-- KEYS: delivery, alarms
-- ARGV: member, lease_ms
-- Returns {'try', at, field, value, ...}, or {'over' | 'busy', at}
local at = now()
local d = table_of(redis.call('HGETALL', KEYS[1]))
if d.state ~= 'pending' then
  redis.call('ZREM', KEYS[2], ARGV[1])
  return {'over', at}
end
if tonumber(d.lease_until or '0') > at or tonumber(d.due_at or '0') > at then return {'busy', at} end
local till = string.format('%.0f', at + tonumber(ARGV[2]))
redis.call('HSET', KEYS[1], 'lease_until', till, 'fence', tonumber(d.fence or '0') + 1)
redis.call('ZADD', KEYS[2], till, ARGV[1])
return {'try', at, unpack(redis.call('HGETALL', KEYS[1]))}
