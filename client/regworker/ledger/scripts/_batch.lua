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

-- A junk record's number is that job's error, before it could be that of all.
local function checked(score)
  if score ~= score then error('ERR value is not a valid float', 0) end
  return score
end

local function once(key, read)
  local found = KNOWN[key]
  if found == nil then
    found = read(key)
    KNOWN[key] = found
  end
  return found
end
local function learn(key, found) KNOWN[key] = found end

local function list_open(id, rank) LISTED[id] = rank and checked(rank) or false end
local function alarm(member, at) DUE[member] = checked(at) end
local function no_alarm(member) DUE[member] = false end
local function weigh(bytes)
  -- Its caller would not read so long an answer, nor those of the others.
  if bytes > 8 * MOST_WEIGHT then error('ERR the record is too large to be answered', 0) end
  WEIGHT = WEIGHT + bytes
end
local function count(what, by) COUNTED[what] = (COUNTED[what] or 0) + (by or 1) end
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

local function write_all()
  for what, number in pairs(COUNTED) do increase(PREFIX .. 'stats', what, number) end
  local added, removed = parted(DUE)
  if added[1] then redis.call('ZADD', ALARMS, unpack(added)) end
  if removed[1] then redis.call('ZREM', ALARMS, unpack(removed)) end
  added, removed = parted(LISTED)
  if added[1] then redis.call('ZADD', OPEN, unpack(added)) end
  if removed[1] then redis.call('ZREM', OPEN, unpack(removed)) end
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
  -- Before anything is written: whether what is written last can be (it may have a wrong type, or the
  -- server's memory be full). These change nothing.
  redis.call('ZADD', ALARMS, 'XX', 0, '')
  redis.call('ZADD', OPEN, 'XX', 0, '')
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
