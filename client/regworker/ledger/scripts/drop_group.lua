-- drop_group: (no edge) drop a consumer group of a stream; its unread entries can then be trimmed
-- KEYS: stream
-- ARGV: group, actor
-- Returns 1, or 0 if there was none.
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local gone = redis.call('XGROUP', 'DESTROY', KEYS[1], ARGV[1])
if gone == 1 then record_act(ARGV[2], 'group.drop', KEYS[1] .. ' ' .. ARGV[1], 'there', 'dropped') end
return gone
