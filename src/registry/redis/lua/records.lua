-- The state of a record. It has a field `holder:<holder>` for each holder that has not released it. Without any, it has
-- ended. If all of them are adopted, it is lost: the one that adopted the only one claims the end.
local adopter_cache = {}

-- The holder that has adopted this one, and when. Nil if it is not adopted.
local function adopter_of(holder)
  local found = adopter_cache[holder]
  if found == nil then
    local value = redis.call('HGET', ADOPTERS, holder)
    found = value and {string.match(value, '^(%S+) (%S+)$')} or false
    adopter_cache[holder] = found
  end
  if found then
    return found[2], found[1]
  end
end

-- The holders that hold the record, the adopted ones, which hold nothing, and whether the record has a claimer.
local function holders_of(record)
  local living, dead, is_claimed = {}, {}, false
  for _, field in ipairs(redis.call('HKEYS', record)) do
    if string.sub(field, 1, 7) == 'holder:' then
      local holder = string.sub(field, 8)
      local list = adopter_of(holder) and dead or living
      list[#list + 1] = holder
    elseif field == 'claimer' then
      is_claimed = true
    end
  end
  return living, dead, is_claimed
end

-- The adopted holder that alone holds a record without a claimer, if this holder has adopted it.
local function lost_by(living, dead)
  if #living == 0 and #dead == 1 and adopter_of(dead[1]) == rid then
    return dead[1], 'held'
  end
end

-- The holder in whose set the claimed end is, this one or one that it has adopted, and the kind of the set. The claimer is the
-- field of the record, or false.
local function claim_of(record, claimer)
  if not claimer then
    return lost_by(holders_of(record))
  elseif claimer == rid or adopter_of(claimer) == rid then
    return claimer, 'claimed'
  end
end
