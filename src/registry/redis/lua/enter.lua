-- Takes a lease, and says which store this is. ARGV: 8 a new incarnation, 9 the layout, 10 the deployment.
local function value(section, name)
  local info = redis.pcall('INFO', section)
  return type(info) == 'string' and string.match(info, name .. ':([^\r\n]*)')
end

local layout, deployment = ARGV[9], ARGV[10]
local version = value('server', 'redis_version') or '6'
if tonumber(string.match(version, '^%d+')) < 6 then
  return {'INVALID', 'the server is of version ' .. version .. ', and not 6.0 at least'}
end
-- Also without a limit: one can be set at any time.
local policy = value('memory', 'maxmemory_policy')
if policy and string.find(policy, '^allkeys') then
  return {'INVALID', 'the server evicts any key when memory is short (maxmemory-policy ' .. policy .. '): set noeviction'}
end
local mismatch = other_layout(layout)
if mismatch then
  return mismatch
end
if redis.call('SET', INCARNATION, ARGV[8], 'NX') and deployment ~= '' then
  redis.call('SET', DEPLOYMENT, deployment)
end
mismatch = other_deployment(deployment)
if mismatch then
  return mismatch
end
-- A lease that no holder has taken away is one that the server has lost.
if redis.call('ZSCORE', FENCED, rid) or redis.call('HEXISTS', ADOPTERS, rid) == 1 then
  return {'FENCED'}
end
renew()
return {word('OK'), redis.call('GET', INCARNATION), present_history(), policy or '-'}
