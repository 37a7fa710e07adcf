-- Takes a lease, and says which store this is. ARGV[6]: a new incarnation. ARGV[7]: how one of this layout begins.
local function value(section, name)
  local info = redis.pcall('INFO', section)
  return type(info) == 'string' and string.match(info, name .. ':([^\r\n]*)')
end

local version = value('server', 'redis_version') or '6'
if tonumber(string.match(version, '^%d+')) < 6 then
  return {'INVALID', 'the server is of version ' .. version .. ', and not 6.0 at least'}
end
local policy = value('memory', 'maxmemory_policy') or ''
if string.find(policy, '^allkeys') and value('memory', 'maxmemory') ~= '0' then
  return {'INVALID', 'the server evicts any key when memory is short (maxmemory-policy ' .. policy .. ')'}
end
if redis.call('EXISTS', KEYS[10]) == 1 then
  return {'INVALID', 'its keys are laid out by an older version of this crate (' .. KEYS[10] .. ' exists)'}
end
redis.call('SET', INCARNATION, ARGV[6], 'NX')
local present = redis.call('GET', INCARNATION)
if string.sub(present, 1, #ARGV[7]) ~= ARGV[7] then
  return {'INVALID', 'its keys are laid out by another version (' .. present .. ', and not ' .. ARGV[7] .. ')'}
end
-- A lease that nobody has taken away is one that the server has lost.
if redis.call('ZSCORE', FENCED, rid) then
  return {'FENCED'}
end
renew()
return {'OK', present, present_history()}
