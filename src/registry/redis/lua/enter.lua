-- Takes a lease, and says what this server is. ARGV[6]: a new incarnation. ARGV[7]: how an incarnation of this layout begins.
redis.call('SET', INC, ARGV[6], 'NX')
local present = redis.call('GET', INC)
if string.sub(present, 1, #ARGV[7]) ~= ARGV[7] then
  return {'LAYOUT', present}
end
if redis.call('ZSCORE', FENCED, rid) then
  return {'FENCED'}
end
renew()
local server = redis.pcall('INFO', 'server')
local memory = redis.pcall('INFO', 'memory')
local function value(info, name)
  return type(info) == 'string' and string.match(info, name .. ':([^\r\n]*)') or ''
end
return {
  'OK', present, present_history(),
  value(server, 'redis_version'), value(memory, 'maxmemory'), value(memory, 'maxmemory_policy'),
}
