-- stray: (no edge) an account or an endpoint sent unrequested bytes, or is trusted again
-- KEYS: its record
-- ARGV: seen | trusted, actor, the act's name in the audit log, the subject there,
--       ticket
-- Returns 1 if that is new. A record with `stray_at` gets a new connection for each call.
if ARGV[1] == 'trusted' then
  if was_done(ARGV[5]) then return 1 end
  local was = redis.call('HDEL', KEYS[1], 'stray_at')
  if was == 1 then
    note_done(ARGV[5])
    record_act(ARGV[2], ARGV[3], ARGV[4], 'distrusted', 'trusted')
  end
  return was
end
return redis.call('HSETNX', KEYS[1], 'stray_at', now())
