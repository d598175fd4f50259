-- leave: (no edge) a group's reader ends: it releases the entries that it did not return
-- KEYS: stream
-- ARGV: group, reader, who holds released entries until somebody takes them over, idle_ms that they
--       get, these entries...
-- Returns whether the reader was removed (1). One that holds entries stays, and so does one with a
-- permanent name, which holds its released entries itself: its removal would remove the entries
-- from the group. In one script, since a read of the reader may still be under way.
local stream, group, reader, heir = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
for i = 5, #ARGV do
  local held = redis.call('XPENDING', stream, group, ARGV[i], ARGV[i], 1, reader)[1]
  if held then
    -- The delivery that nobody saw does not count.
    redis.call('XCLAIM', stream, group, heir, 0, ARGV[i], 'IDLE', ARGV[4], 'RETRYCOUNT',
      held[4] - 1, 'JUSTID')
  end
end
if heir == reader or redis.call('XPENDING', stream, group, '-', '+', 1, reader)[1] then return 0 end
redis.call('XGROUP', 'DELCONSUMER', stream, group, reader)
return 1
