-- Whether the keys are those of this version and of this deployment. Each function returns the answer if they are not.
local function other_layout(layout)
  local present = redis.call('GET', INCARNATION)
  if redis.call('EXISTS', root .. 'inc') == 1 then
    present = '1-'
  end
  if present and string.sub(present, 1, #layout) ~= layout then
    return {'INVALID', 'the keys that begin with ' .. root .. ' have the layout ' .. (string.match(present, '^%d+') or '?')
      .. ' of another version of tower-session-end, and this one uses ' .. string.match(layout, '^%d+')
      .. ': let the processes of that version end all sessions and delete these keys, or set another `prefix`'}
  end
end

local function other_deployment(deployment)
  local present = redis.call('GET', DEPLOYMENT) or ''
  if redis.call('EXISTS', INCARNATION) == 1 and present ~= deployment then
    local function name(text) return text == '' and 'no deployment' or 'the deployment "' .. text .. '"' end
    return {'INVALID', 'the keys that begin with ' .. root .. ' belong to ' .. name(present) .. ', and this process to '
      .. name(deployment) .. ': if the database is a copy, delete these keys; else set the right `deployment` or another `prefix`'}
  end
end
