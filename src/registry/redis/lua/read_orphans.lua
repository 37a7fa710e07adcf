-- Reads a page of what an adopted holder held or had claimed. ARGV: 8 the holder, 9 `held` or `claimed`, 10 the last
-- generation that was read before, 11 the greatest number of orphans. The answer: the last generation that was read, empty
-- at the end, then the orphans.
local refused = refuse()
if refused then
  return refused
end

-- Limits for the time that one script blocks the server, and for the size of its answer.
local MAX_RECORDS, MAX_BYTES = 500, 1048576
local dead, kind, after, max = ARGV[8], ARGV[9], ARGV[10], tonumber(ARGV[11])
local adopter, since = adopter_of(dead)
if adopter ~= rid then
  return {word('OK'), ''}
end

local set = kind == 'held' and held_key(dead) or claimed_key(dead)
local page = redis.call('ZRANGEBYLEX', set, after == '' and '-' or '(' .. after, '+', 'LIMIT', 0, MAX_RECORDS)
local field, answer, bytes, position, without_hold = 'holder:' .. dead, {word('OK'), ''}, 0, 0, {}

local function is_held_by_another(record)
  -- A record with one hold and nothing else has five fields: the usual case, and faster.
  if redis.call('HLEN', record) <= 5 then
    return false
  end
  for _, name in ipairs(redis.call('HKEYS', record)) do
    if name ~= field and string.find(name, '^holder:') then
      return true
    end
  end
  return false
end

while position < #page and #answer - 2 < max and bytes < MAX_BYTES do
  position = position + 1
  local generation = page[position]
  local record = record_key(generation)
  if kind == 'held' and is_held_by_another(record) then
    redis.call('HDEL', record, field)
    without_hold[#without_hold + 1] = generation
  else
    local orphan
    if kind == 'held' then
      local fields = redis.call('HMGET', record, 'id', 'session', 'started_at', 'requests', 'attempts')
      orphan = {generation, fields[1], fields[2] or '', fields[3] or '', 'lost', '', since, fields[4] or '', fields[5] or ''}
    else
      orphan = redis.call(
        'HMGET', record, 'id', 'session', 'started_at', 'reason', 'next', 'ended_at', 'requests', 'attempts')
      table.insert(orphan, 1, generation)
    end
    if orphan[2] then
      for i = 3, 9 do
        orphan[i] = orphan[i] or ''
      end
      bytes = bytes + #orphan[2] + #orphan[3] + #orphan[6]
      answer[#answer + 1] = orphan
    else
      without_hold[#without_hold + 1] = generation
    end
  end
end
if #without_hold > 0 then
  redis.call('ZREM', set, unpack(without_hold))
end
if position < #page or #page == MAX_RECORDS then
  answer[2] = page[position] or after
end
return answer
