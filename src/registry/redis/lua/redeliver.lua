-- Makes dead letters orphans again: claimed by a holder that never lived, which waits to be adopted. ARGV: 4 a name, 5 the
-- generation, or empty for the oldest ones, 6 the latest time of those. The answer: the time, and how many there were.
local MAX_RECORDS = 256
local name, generation, until_time = ARGV[4], ARGV[5], ARGV[6]
local claimer = 'redelivered:' .. integer(now) .. ':' .. name
local letters = {generation}
if generation == '' then
  letters = redis.call(
    'ZRANGEBYSCORE', DEAD_LETTERS, '-inf', until_time == '' and integer(now) or until_time, 'LIMIT', 0, MAX_RECORDS)
end
local count = 0
for _, letter in ipairs(letters) do
  if redis.call('ZREM', DEAD_LETTERS, letter) == 1 and redis.call('EXISTS', record_key(letter)) == 1 then
    redis.call('HSET', record_key(letter), 'claimer', claimer, 'attempts', 0)
    redis.call('HDEL', record_key(letter), 'error')
    redis.call('ZADD', claimed_key(claimer), 0, letter)
    count = count + 1
  end
end
if count > 0 then
  redis.call('ZADD', UNADOPTED, integer(now), claimer)
end
return {word('OK'), integer(now), count}
