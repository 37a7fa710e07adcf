-- The beginning of every script: the names of the keys, and the time.
local root = ARGV[1]
local INCARNATION, DEPLOYMENT = root .. 'incarnation', root .. 'deployment'
local LEASES, FENCED, GRACE_UNTIL, CALL_NUMBERS = root .. 'leases', root .. 'fenced', root .. 'grace_until', root .. 'call_numbers'
local ADOPTERS, UNADOPTED, DEAD_LETTERS = root .. 'adopters', root .. 'unadopted', root .. 'dead_letters'

local function record_key(generation) return root .. 'session:' .. generation end
-- The active records of one id. More than one if a session was recorded again beside another.
local function id_key(id) return root .. 'id:' .. id end
local function held_key(holder) return root .. 'held:' .. holder end
local function claimed_key(holder) return root .. 'claimed:' .. holder end
local function notices_key(holder) return root .. 'notices:' .. holder end
-- The dead holders that this holder has adopted.
local function adopted_key(holder) return root .. 'adopted:' .. holder end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- The greatest integer that a Lua number represents exactly.
local GREATEST_INTEGER = 9007199254740992

local function integer(number)
  return string.format('%.0f', math.min(number, GREATEST_INTEGER))
end

-- The first element of an answer: a word, and the time (ms).
local function word(text)
  return text .. ' ' .. integer(now)
end
