-- Adopts holders without a lease. The answer: whether there may be more of them, then each adopted holder that has
-- something left.
local refused = refuse()
if refused then
  return refused
end

local WEEK = 604800000
local LIMIT = 8

local function point_to_me(dead, since)
  redis.call('HSET', ADOPTERS, dead, integer(since) .. ' ' .. rid)
  redis.call('SADD', adopted_key(rid), dead)
end

-- Adopts this holder with all that it had adopted.
local function adopt(dead, since)
  for _, former in ipairs(redis.call('SMEMBERS', adopted_key(dead))) do
    local value = redis.call('HGET', ADOPTERS, former)
    point_to_me(former, tonumber(string.match(value or '', '^%d+')) or since)
  end
  redis.call('UNLINK', adopted_key(dead), notices_key(dead))
  point_to_me(dead, since)
end

local more = 0
if now >= tonumber(redis.call('GET', GRACE_UNTIL) or 0) then
  local expired = redis.call('ZRANGEBYSCORE', LEASES, '-inf', '(' .. integer(now), 'LIMIT', 0, LIMIT)
  for _, dead in ipairs(expired) do
    redis.call('ZREM', LEASES, dead)
    redis.call('HDEL', CALL_NUMBERS, dead)
    -- Kept for a week: a holder that is alive after all learns from it that others have recovered it.
    redis.call('ZADD', FENCED, integer(now), dead)
    adopt(dead, now)
  end
  if #expired == LIMIT then
    more = 1
  end
end
redis.call('ZREMRANGEBYSCORE', FENCED, '-inf', integer(now - WEEK))

local released = redis.call('ZRANGE', UNADOPTED, 0, LIMIT - 1, 'WITHSCORES')
for i = 1, #released, 2 do
  redis.call('ZREM', UNADOPTED, released[i])
  adopt(released[i], tonumber(released[i + 1]))
end
if #released == 2 * LIMIT then
  more = 1
end

local answer = adopted_with_rest()
table.insert(answer, 1, word('OK'))
table.insert(answer, 2, more)
return answer
