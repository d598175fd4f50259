-- drop_group: (no edge) drop a consumer group of a stream; its unread entries can then be trimmed
-- KEYS: stream
-- ARGV: group, actor, ticket
-- Returns 1, or 0 if there was none.
if was_done(ARGV[3]) then return 1 end
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local gone = redis.call('XGROUP', 'DESTROY', KEYS[1], ARGV[1])
if gone == 1 then
  note_done(ARGV[3])
  record_act(ARGV[2], 'group.drop', KEYS[1] .. ' ' .. ARGV[1], 'there', 'dropped')
end
return gone
