-- The oldest notices of this holder. The answer: whether there are more, the number of dead letters, then each notice and
-- its age.
local refused = refuse()
if refused then
  return refused
end

local LIMIT = 1000
local oldest = redis.call('ZRANGE', notices_key(rid), 0, LIMIT, 'WITHSCORES')
local answer = {word('OK'), #oldest > 2 * LIMIT and 1 or 0, redis.call('ZCARD', DEAD_LETTERS)}
for i = 1, math.min(#oldest, 2 * LIMIT), 2 do
  answer[#answer + 1] = oldest[i]
  answer[#answer + 1] = integer(math.max(now - tonumber(oldest[i + 1]), 0))
end
return answer
