-- Several jobs in one call: the shared functions that read and write for all of them at once. Each
-- replaces its namesake in `_lib.lua`; the others are additions (`script_loader.py`).
--
-- A batch has the effect of its jobs' scripts one after another, at one time. It reads what they
-- have in common once, and writes it at its end: of several values of a member, the last counts. A
-- job that fails has written what it would have written alone, and does not keep the others from
-- their turn.

-- By key, what is known; by member, when its alarm is due, and its rank in OPEN (false: none any
-- more); by name, how many; the bytes of the answers.
local KNOWN, DUE, LISTED, COUNTED, WEIGHT = {}, {}, {}, {}, 0

-- Above so many bytes, no further job is answered: its caller sends it again.
local MOST_WEIGHT = 1048576

local function once(key, read)
  local found = KNOWN[key]
  if found == nil then
    found = read(key)
    KNOWN[key] = found
  end
  return found
end
local function learn(key, found) KNOWN[key] = found end

local function list_open(id, rank) LISTED[id] = rank or false end
local function alarm(member, at) DUE[member] = at end
local function no_alarm(member) DUE[member] = false end
local function weigh(bytes) WEIGHT = WEIGHT + bytes end
local function count(what) COUNTED[what] = (COUNTED[what] or 0) + 1 end
local function keep(key, duration)
  local kept = 'kept ' .. key
  if KNOWN[kept] then return end
  redis.call('PEXPIRE', key, duration)
  KNOWN[kept] = true
end

-- The scores and members to add to a sorted set, and the members to remove.
local function parted(scores)
  local added, removed = {}, {}
  for member, score in pairs(scores) do
    if score then
      added[#added + 1] = score
      added[#added + 1] = member
    else
      removed[#removed + 1] = member
    end
  end
  return added, removed
end

-- In the order of the scripts. An error is that of all jobs, since each has both indices.
local function write_all()
  for what, number in pairs(COUNTED) do redis.pcall('HINCRBY', PREFIX .. 'stats', what, number) end
  local added, removed = parted(LISTED)
  if added[1] then redis.call('ZADD', OPEN, unpack(added)) end
  if removed[1] then redis.call('ZREM', OPEN, unpack(removed)) end
  added, removed = parted(DUE)
  if added[1] then redis.call('ZADD', ALARMS, unpack(added)) end
  if removed[1] then redis.call('ZREM', ALARMS, unpack(removed)) end
end

-- An error as the server answers it: with its code, by which clients know what they may repeat.
local function failed(fault)
  local text = tostring(type(fault) == 'table' and fault.err or fault)
  return {err = text:match('^%u+ ') and text or 'ERR ' .. text}
end

-- Run the script `one` for each job; return its answers or errors; false: not run. KEYS: each
-- job's record, then the other keys of the script, which are the same for all. ARGV: how many jobs,
-- then for each job how many arguments, and these.
local function for_each(one, keys, args)
  local answers, jobs, next_ = {}, tonumber(args[1]), 2
  for i = 1, jobs do
    local last = next_ + tonumber(args[next_])
    answers[i] = false
    if WEIGHT < MOST_WEIGHT then
      local done, answer = pcall(one, {keys[i], unpack(keys, jobs + 1)}, {unpack(args, next_ + 1, last)})
      answers[i] = done and answer or failed(answer)
    end
    next_ = last + 1
  end
  write_all()
  return answers
end
