-- drop_plan: (no edge) forget what is left of a plan; what was done stays done
-- KEYS: plan, plans
-- ARGV: id, how many items are left (text for the audit log), actor, ticket
-- Returns 1, or 0 if there was none.
if was_done(ARGV[4]) then return 1 end
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
note_done(ARGV[4])
record_act(ARGV[3], 'plan.drop', ARGV[1], ARGV[2], 'dropped')
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
return 1
