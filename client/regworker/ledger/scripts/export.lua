-- export: (no edge) write to the audit log that a person exported the stored data of a job
-- KEYS: ticket, job
-- ARGV: id, ticket, actor
-- `ticket` distinguishes a client's retry after a lost answer from a second export.
if redis.call('GET', KEYS[1]) == ARGV[2] then
  write_again()
  return 1
end
record_act(ARGV[3], 'job.export', ARGV[1], redis.call('HGET', KEYS[2], 'state') or '', 'exported')
redis.call('SET', KEYS[1], ARGV[2], 'PX', 60000)
return 1
