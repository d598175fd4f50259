-- replay: (a delivery) dead -> pending, at the start of its schedule
-- KEYS: dead
-- ARGV: ticket, actor, member...
-- Returns for each 'replayed', 'gone' (not dead: it arrived, is pending, or expired) or 'disabled'
-- (its endpoint is: it would be dead again at once). `ticket` distinguishes a client's retry after
-- a lost answer from a delivery that somebody else replayed.
local at, answer, let_go = now(), {}, {}
for i = 3, #ARGV do
  local member = ARGV[i]
  local d = table_of(peek('HGETALL', delivery_key(member)) or {})
  local said = 'gone'
  if d.state == 'pending' and d.ticket == ARGV[1] then
    said = 'replayed'
  elseif d.state == 'dead' and d.endpoint then
    d.created_at = tonumber(d.created_at or at) or at
    local endpoint, pending, trying = endpoint_keys(d.endpoint)
    local e = table_of(redis.call('HGETALL', endpoint))
    said = e.disabled == '1' and 'disabled' or 'replayed'
    if said == 'replayed' then
      record_act(ARGV[2], 'delivery.replay', member, 'dead', 'pending')
      redis.call('HSET', delivery_key(member), 'state', 'pending', 'tries', '0', 'due_at', '0',
        'wakes', '0', 'ticket', ARGV[1], 'started_at', at)
      redis.call('HDEL', delivery_key(member), 'dead_at')
      redis.call('PERSIST', delivery_key(member))
      redis.call('ZREM', KEYS[1], member)
      redis.call('ZADD', pending, d.created_at, member)
      -- As many at once as the endpoint may get; each one that ends wakes the next.
      local cap, gone = tonumber(e.max_in_flight or '0'), let_go[d.endpoint] or 0
      if cap > 0 and redis.call('ZCARD', trying) + gone >= cap then
        stand_in_line(member, d, at)
      else
        alarm(member, at)
        let_go[d.endpoint] = gone + 1
      end
      tell_job(d, at, 'replayed')
      count('replayed')
    end
  end
  answer[#answer + 1] = said
end
return answer
