-- streams: (no edge) some streams with their groups, for monitoring
-- KEYS: streams
-- ARGV: stream...
-- Returns JSON: a list, as in `snapshot`. Reads only.
return cjson.encode(read_streams(ARGV))
