-- handled: (no edge) remove an entry of the job stream that made no job
-- KEYS: jobs
-- ARGV: entry
handled(ARGV[1])
return 1
