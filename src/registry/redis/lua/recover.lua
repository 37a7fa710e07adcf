-- Claims orphaned ends. ARGV: 6 the prefix of all keys, 7 the number of this call, 8 the number of the last call whose
-- answer has arrived, 9 the greatest number of ends. The answer: whether there are more, then the ends.
local refused = refuse()
if refused then
  return refused
end

local prefix, call, answered, want = ARGV[6], ARGV[7], ARGV[8], tonumber(ARGV[9])
local WEEK = 604800000
-- Limits for the time that one script blocks the server, and for the size of its answer.
local STEPS, BYTES = 256, 1048576
local steps, bytes = 0, 0
local answer = {'OK', 0}

local function room()
  return #answer - 2 < want and steps < STEPS and bytes < BYTES
end

-- Adds an end to the answer. It is repeated in each further answer until one has arrived.
local function claim(generation, ending)
  local record = redis.call(
    'HMGET', ending, 'id', 'session', 'started', 'reason', 'next', 'ended', 'requests', 'attempts')
  redis.call('SADD', CLAIMED, generation)
  redis.call('ZADD', TOLD, call, generation)
  for i = 1, 8 do
    record[i] = record[i] or ''
    bytes = bytes + #record[i]
  end
  table.insert(record, 1, generation)
  answer[#answer + 1] = record
end

redis.call('ZREMRANGEBYSCORE', TOLD, answered, answered)
for _, generation in ipairs(redis.call('ZRANGEBYSCORE', TOLD, '-inf', '(' .. call, 'LIMIT', 0, want)) do
  if not room() then
    break
  end
  local ending = prefix .. 'end:' .. generation
  if redis.call('EXISTS', ending) == 1 then
    claim(generation, ending)
  else
    redis.call('ZREM', TOLD, generation)
    redis.call('SREM', CLAIMED, generation)
  end
end

-- Expires leases, up to 8 per script.
if redis.call('EXISTS', GRACE) == 0 then
  local over = redis.call('ZRANGEBYSCORE', LEASE, '-inf', '(' .. integer(now), 'LIMIT', 0, 8)
  if #over == 8 then
    answer[2] = 1
  end
  for _, expired in ipairs(over) do
    redis.call('ZREM', LEASE, expired)
    redis.call('HDEL', SEQ, expired)
    redis.call('ZADD', REAPING, integer(now), expired)
    -- Kept for a week: a holder that is alive after all learns from it that others have recovered it.
    redis.call('ZADD', FENCED, integer(now), expired)
    redis.call('ZREMRANGEBYSCORE', FENCED, '-inf', integer(now - WEEK))
    redis.call('PEXPIRE', FENCED, integer(WEEK))
  end
end

-- Releases a session of an expired holder. The session is lost if that was its last holder.
local function end_if_last(expired, held)
  local generation, id = string.match(held, '^(%S+) (.+)$')
  local session = prefix .. 'session:' .. id
  if redis.call('HGET', session, 'generation') ~= generation or redis.call('HDEL', session, 'holder:' .. expired) == 0 then
    return
  end
  if redis.call('HINCRBY', session, 'holders', -1) > 0 then
    return
  end
  local ending = prefix .. 'end:' .. generation
  redis.call('RENAME', session, ending)
  redis.call('HSET', ending, 'reason', 'lost', 'next', '', 'ended', integer(now), 'attempts', 1)
  claim(generation, ending)
end

-- Claims an end that an expired holder had claimed.
local function claim_end(generation)
  local ending = prefix .. 'end:' .. generation
  if redis.call('EXISTS', ending) == 1 then
    redis.call('HINCRBY', ending, 'attempts', 1)
    claim(generation, ending)
  end
end

for _, expired in ipairs(redis.call('ZRANGE', REAPING, 0, 7)) do
  local i, c = prefix .. 'held:' .. expired, prefix .. 'claimed:' .. expired
  while room() do
    steps = steps + 1
    local held = redis.call('SPOP', i)
    if held then
      end_if_last(expired, held)
    else
      local generation = redis.call('SPOP', c)
      if not generation then
        break
      end
      claim_end(generation)
    end
  end
  if redis.call('EXISTS', i, c) == 0 then
    redis.call('ZREM', REAPING, expired)
    redis.call('DEL', prefix .. 'told:' .. expired)
  end
end

if redis.call('ZCARD', REAPING) > 0 then
  answer[2] = 1
end
return answer
