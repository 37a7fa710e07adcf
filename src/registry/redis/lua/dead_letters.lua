-- Reads dead letters, the oldest first. ARGV: 4 how many to skip, 5 the greatest number. The answer: whether there are more,
-- then the letters.
local MAX_BYTES = 1048576
local skip, max = tonumber(ARGV[4]), tonumber(ARGV[5])
local answer, bytes = {word('OK'), 0}, 0
for _, generation in ipairs(redis.call('ZRANGE', DEAD_LETTERS, skip, skip + max)) do
  if #answer - 2 == max or bytes >= MAX_BYTES then
    answer[2] = 1
    break
  end
  local letter = redis.call(
    'HMGET', record_key(generation), 'id', 'session', 'started_at', 'reason', 'next', 'ended_at', 'requests', 'attempts', 'error')
  for i = 1, 9 do
    letter[i] = letter[i] or ''
    bytes = bytes + #letter[i]
  end
  table.insert(letter, 1, generation)
  answer[#answer + 1] = letter
end
return answer
