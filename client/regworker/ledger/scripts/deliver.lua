-- deliver: (a delivery) pending: claimed for one try; or pending -> dead, its endpoint disabled
-- KEYS: delivery, alarms
-- ARGV: member, token, lease_ms
-- Returns {'try', at, delivery...}   leased, with a place among the endpoint's tries; in the order
--                                   of `try`
--         {'over' | 'dead', at, why}       nothing to do any more
--         {'busy' | 'full', at, until}     not now; its alarm is set
-- The first word is followed by a space and the token, which shows whose answer it is.
-- `token` distinguishes a client's retry after a lost answer from a second worker.
local member, token, at = ARGV[1], ARGV[2], now()
local mine = ' ' .. token
local d = table_of(redis.call('HGETALL', KEYS[1]))
if d.state ~= 'pending' or not d.endpoint then
  redis.call('ZREM', KEYS[2], member)
  return {'over' .. mine, at, d.state or 'gone'}
end
local lease_until, due_at = tonumber(d.lease_until) or 0, tonumber(d.due_at) or 0
local stray_at, disables
local function try()
  local created_at = tonumber(d.created_at) or at
  return {'try' .. mine, at, d.job or '', d.event_id or '', d.endpoint, tonumber(d.tries) or 0, tonumber(d.fence) or 0,
    created_at, tonumber(d.started_at) or created_at, d.provider or '',
    d.account or '', d.trace or '', d.event or '', stray_at or '', tonumber(disables or 0) or 0}
end
if d.token == token and lease_until > at then
  local e = redis.call('HMGET', (endpoint_keys(d.endpoint)), 'stray_at', 'disables')
  stray_at, disables = e[1], e[2]
  return try()
end
if lease_until > at or due_at > at then return {'busy' .. mine, at, math.max(lease_until, due_at)} end

local endpoint, _, trying, line = endpoint_keys(d.endpoint)
local e = table_of(redis.call('HGETALL', endpoint))
stray_at, disables = e.stray_at, e.disables
if e.disabled == '1' then
  local why = 'the endpoint is disabled: ' .. (e.why or '')
  tell_job(d, at, 'dead ' .. why)
  bury(member, d, at, why)
  return {'dead' .. mine, at, why}
end
redis.call('ZREMRANGEBYSCORE', trying, '-inf', at)
local cap, taken = tonumber(e.max_in_flight) or 0, redis.call('ZCARD', trying)
if cap > 0 and taken >= cap then
  stand_in_line(member, d, at)
  return {'full' .. mine, at, at + IN_LINE}
end

local till = at + tonumber(ARGV[3])
d.fence = (tonumber(d.fence) or 0) + 1
redis.call('HSET', KEYS[1], 'lease_until', till, 'fence', d.fence, 'token', token, 'wakes', 0)
redis.call('ZADD', trying, till, member)
redis.call('ZADD', KEYS[2], till, member)
if redis.call('ZCARD', line) > 0 then
  redis.call('ZREM', line, member)
  if cap > 0 and taken + 1 < cap then
    -- There is room for one more: a lease expired, or the delivery that got the place did not need
    -- it.
    local first = redis.call('ZPOPMIN', line)
    if first[1] then alarm(first[1], at) end
  end
end
return try()
