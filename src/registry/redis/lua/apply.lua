-- Applies changes. ARGV from 8 on: the name and the fields of each change.
local refused = refuse()
if refused then
  return refused
end

local position = 7
local function next_arg()
  position = position + 1
  return ARGV[position]
end
local my_holder, my_release = 'holder:' .. rid, 'released:' .. rid
local my_held, my_claimed, my_notices = held_key(rid), claimed_key(rid), notices_key(rid)

-- The member of a set of notices. Neither a generation nor a session id contains a space.
local function notice(generation, id)
  return generation .. ' ' .. id
end

local function add_me(record, generation)
  redis.call('HSET', record, my_holder, 1)
  redis.call('HDEL', record, my_release)
  redis.call('ZADD', my_held, 0, generation)
end

-- The answer for a record that is not active.
local function claimed_or_gone(record, answer_if_mine)
  local claimer, kind = claim_of(record, redis.call('HGET', record, 'claimer'))
  if claimer == rid then
    return answer_if_mine
  elseif claimer then
    -- Recovered. The client knows whether it has returned this orphan.
    return {'RECOVERED', redis.call('HGET', record, 'requests') or '0', claimer, kind}
  end
  return {'GONE'}
end

-- Removes all holds of a record, and the record too unless its end is pending. Tells the other living holders.
local function remove_holds(record, generation, id, living, dead, end_is_pending, with_notices)
  local fields = {}
  for _, list in ipairs({living, dead}) do
    for _, holder in ipairs(list) do
      fields[#fields + 1] = 'holder:' .. holder
      redis.call('ZREM', held_key(holder), generation)
      if with_notices and list == living and holder ~= rid and redis.call('ZSCORE', LEASES, holder) then
        redis.call('ZADD', notices_key(holder), integer(now), notice(generation, id))
      end
    end
  end
  if not end_is_pending then
    redis.call('DEL', record)
  elseif #fields > 0 then
    redis.call('HDEL', record, unpack(fields))
  end
  redis.call('ZREM', id_key(id), generation)
end

local function hold()
  local generation, id, details, started_at, mode = next_arg(), next_arg(), next_arg(), next_arg(), next_arg()
  if redis.call('ZSCORE', my_notices, notice(generation, id)) then
    return {'GONE'}
  end
  local record = record_key(generation)
  if redis.call('EXISTS', record) == 1 then
    if #holders_of(record) == 0 then
      return claimed_or_gone(record, {'CREATED'})
    end
    redis.call('HSET', record, 'session', details)
    add_me(record, generation)
    return {'CREATED'}
  end
  if mode ~= 'create' then
    for _, other in ipairs(redis.call('ZRANGE', id_key(id), 0, -1)) do
      local active = record_key(other)
      if #holders_of(active) > 0 then
        add_me(active, other)
        local fields = redis.call('HMGET', active, 'session', 'started_at')
        return {'JOINED', other, fields[1] or '', fields[2] or ''}
      end
      -- Lost: it has ended.
      redis.call('ZREM', id_key(id), other)
    end
  end
  if mode == 'join' then
    return {'NOT_FOUND'}
  end
  redis.call('HSET', record, 'id', id, 'session', details, 'started_at', started_at, 'requests', 0, my_holder, 1)
  redis.call('ZADD', my_held, 0, generation)
  redis.call('ZADD', id_key(id), started_at, generation)
  return {'CREATED'}
end

local function update()
  local generation, details = next_arg(), next_arg()
  local record = record_key(generation)
  if redis.call('HEXISTS', record, my_holder) == 0 then
    return {'GONE'}
  end
  redis.call('HSET', record, 'session', details)
  return {'OK'}
end

-- A release, or an end for all holders.
local function finish(for_all)
  local generation, id, reason, successor, ended_at = next_arg(), next_arg(), next_arg(), next_arg(), next_arg()
  local requests = tonumber(next_arg())
  local record = record_key(generation)
  local fields = redis.call('HMGET', record, 'id', 'requests', my_holder, my_release)
  if fields[1] ~= id then
    return {'GONE'}
  end
  local living, dead = holders_of(record)
  if #living == 0 then
    return claimed_or_gone(record, {'OWNED', fields[2] or '0'})
  end
  local total = integer((tonumber(fields[2]) or 0) + requests)
  if not for_all then
    if not fields[3] then
      return {fields[4] and 'HELD_ELSEWHERE' or 'GONE'}
    end
    if #living > 1 then
      redis.call('HSET', record, 'requests', total, my_release, 1)
      redis.call('HDEL', record, my_holder)
      redis.call('ZREM', my_held, generation)
      return {'HELD_ELSEWHERE'}
    end
  end
  remove_holds(record, generation, id, living, dead, true, for_all)
  redis.call('HSET', record, 'requests', total, 'reason', reason, 'next', successor, 'ended_at', ended_at, 'attempts', 0,
    'claimer', rid)
  redis.call('ZADD', my_claimed, 0, generation)
  return {'OWNED', total}
end

local function attempted()
  local generation, attempts = next_arg(), next_arg()
  local record = record_key(generation)
  -- Most are of lost sessions: their fields are read once.
  local living, dead, is_claimed = holders_of(record)
  local is_owed
  if is_claimed then
    is_owed = claim_of(record, redis.call('HGET', record, 'claimer'))
  else
    is_owed = lost_by(living, dead)
  end
  if is_owed then
    redis.call('HSET', record, 'attempts', attempts)
  end
  return {'OK'}
end

local function delivered()
  local generation = next_arg()
  local record = record_key(generation)
  local fields = redis.call('HMGET', record, 'claimer', 'id')
  local claimer, kind = claim_of(record, fields[1])
  if kind == 'claimed' then
    redis.call('ZREM', claimed_key(claimer), generation)
    redis.call('DEL', record)
  elseif kind == 'held' then
    remove_holds(record, generation, fields[2], {}, {claimer}, false, false)
  end
  return {'OK'}
end

local function dead_letter()
  local generation, text = next_arg(), next_arg()
  local record = record_key(generation)
  local claimer, kind = claim_of(record, redis.call('HGET', record, 'claimer'))
  if not claimer then
    return {'OK'}
  end
  if kind == 'claimed' then
    redis.call('ZREM', claimed_key(claimer), generation)
    redis.call('HDEL', record, 'claimer')
  else
    local _, since = adopter_of(claimer)
    remove_holds(record, generation, redis.call('HGET', record, 'id'), {}, {claimer}, true, false)
    redis.call('HSET', record, 'reason', 'lost', 'next', '', 'ended_at', since)
  end
  redis.call('HSET', record, 'error', text)
  redis.call('ZADD', DEAD_LETTERS, integer(now), generation)
  return {'OK'}
end

local function keep()
  local generation, id = next_arg(), next_arg()
  local record = record_key(generation)
  if redis.call('HGET', record, 'id') == id and redis.call('HDEL', record, my_holder) == 1 then
    redis.call('ZREM', my_held, generation)
    local living, dead = holders_of(record)
    if #living == 0 then
      remove_holds(record, generation, id, living, dead, false, false)
    end
  end
  return {'OK'}
end

local function forget()
  local generation, id = next_arg(), next_arg()
  local record = record_key(generation)
  if redis.call('HGET', record, 'id') == id then
    local living, dead = holders_of(record)
    if #living > 0 then
      remove_holds(record, generation, id, living, dead, false, true)
    end
  end
  return {'OK'}
end

local function acknowledge()
  redis.call('ZREM', my_notices, notice(next_arg(), next_arg()))
  return {'OK'}
end

local function nothing()
  return {'OK'}
end

local changes = {
  hold = hold,
  update = update,
  release = function() return finish(false) end,
  ['end'] = function() return finish(true) end,
  attempted = attempted,
  delivered = delivered,
  dead_letter = dead_letter,
  keep = keep,
  forget = forget,
  acknowledge = acknowledge,
  nothing = nothing,
}
local answers = {word('OK')}
while position < #ARGV do
  answers[#answers + 1] = changes[next_arg()]()
end
return answers
