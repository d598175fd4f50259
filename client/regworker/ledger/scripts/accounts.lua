-- accounts: (no edge) the state of some of the accounts and endpoints, for monitoring
-- KEYS: configured
-- ARGV: name ('account:<provider>:<account>', 'endpoint:<name>')...
-- Returns JSON: an object with `at` and the tables below, as in `snapshot`. Reads only.
local at, unreadable = now(), {}
local accounts, endpoints = described(ARGV, at, unreadable)
return cjson.encode({at = at, accounts = accounts, endpoints = endpoints, unreadable = unreadable})
