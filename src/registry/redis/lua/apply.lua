-- Applies changes. KEYS from 10 on: the keys of each change. ARGV from 6 on: the letter and the fields of each change.
local refused = refuse()
if refused then
  return refused
end

local key, arg = 9, 5
local function next_key()
  key = key + 1
  return KEYS[key]
end
local function next_arg()
  arg = arg + 1
  return ARGV[arg]
end
local holder = 'holder:' .. rid

local function join(session, generation, id)
  if redis.call('HSETNX', session, holder, 1) == 1 then
    redis.call('HINCRBY', session, 'holders', 1)
  end
  redis.call('SADD', HELD, member(generation, id))
end

-- True if this holder held the session. The second value is the number of remaining holders.
local function release(session, generation, id)
  redis.call('SREM', HELD, member(generation, id))
  if redis.call('HGET', session, 'generation') ~= generation or redis.call('HDEL', session, holder) == 0 then
    return false
  end
  return true, redis.call('HINCRBY', session, 'holders', -1)
end

-- True if this holder has recorded this end, so that the call is a repeat. An end with attempts was recovered.
local function ended_by_holder(ending, generation)
  return redis.call('SISMEMBER', CLAIMED, generation) == 1 and redis.call('HGET', ending, 'attempts') == '0'
end

local function hold()
  local session, ending = next_key(), next_key()
  local generation, id, details, started = next_arg(), next_arg(), next_arg(), next_arg()
  local present = redis.call('HGET', session, 'generation')
  if present == generation then
    redis.call('HSET', session, 'session', details)
    join(session, generation, id)
    return {'B'}
  end
  if ended_by_holder(ending, generation) then
    return {'B'}
  end
  if present then
    join(session, present, id)
    local record = redis.call('HMGET', session, 'session', 'started')
    return {'J', present, record[1], record[2]}
  end
  if redis.call('SISMEMBER', HELD, member(generation, id)) == 1 then
    -- This holder holds the session but the record is missing: another holder has ended it.
    return {'G'}
  end
  redis.call('HSET', session, 'generation', generation, 'id', id, 'session', details, 'started', started, 'requests', 0, 'holders', 0)
  join(session, generation, id)
  return {'B'}
end

local function update()
  local session = next_key()
  local generation, details = next_arg(), next_arg()
  local record = redis.call('HMGET', session, 'generation', holder)
  if record[1] == generation and record[2] then
    redis.call('HSET', session, 'session', details)
  end
  return {'D'}
end

-- A release, or an end for all holders.
local function finish(for_all)
  local session, ending = next_key(), next_key()
  local generation, id, reason, successor, ended = next_arg(), next_arg(), next_arg(), next_arg(), next_arg()
  local requests = tonumber(next_arg())
  local held, others = release(session, generation, id)
  if for_all then
    held, others = redis.call('HGET', session, 'generation') == generation, 0
  end
  if not held then
    if ended_by_holder(ending, generation) then
      return {'Y', redis.call('HGET', ending, 'requests')}
    end
    return {'G'}
  end
  local total = integer(tonumber(redis.call('HGET', session, 'requests')) + requests)
  redis.call('HSET', session, 'requests', total)
  if others > 0 then
    return {'O'}
  end
  redis.call('RENAME', session, ending)
  redis.call('HSET', ending, 'reason', reason, 'next', successor, 'ended', ended, 'attempts', 0)
  redis.call('SADD', CLAIMED, generation)
  return {'Y', total}
end

local function done()
  local ending, generation = next_key(), next_arg()
  if redis.call('SREM', CLAIMED, generation) == 1 then
    redis.call('DEL', ending)
    redis.call('ZREM', TOLD, generation)
  end
  return {'D'}
end

local function keep()
  local session = next_key()
  local held, others = release(session, next_arg(), next_arg())
  if held and others <= 0 then
    redis.call('DEL', session)
  end
  return {'D'}
end

local function forget()
  local session = next_key()
  local generation, id = next_arg(), next_arg()
  redis.call('SREM', HELD, member(generation, id))
  if redis.call('HGET', session, 'generation') == generation then
    redis.call('DEL', session)
  end
  return {'D'}
end

local changes = {
  h = hold,
  u = update,
  r = function() return finish(false) end,
  e = function() return finish(true) end,
  d = done,
  k = keep,
  f = forget,
}
local answers = {'OK'}
while arg < #ARGV do
  answers[#answers + 1] = changes[next_arg()]()
end
return answers
