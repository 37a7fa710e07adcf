-- The common beginning of every script.
local INCARNATION, LEASE, REAPING, FENCED, GRACE, SEQ = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local HELD, CLAIMED, TOLD = KEYS[7], KEYS[8], KEYS[9]
local rid, incarnation, history = ARGV[1], ARGV[2], ARGV[3]
local seq, lease = tonumber(ARGV[4]), tonumber(ARGV[5])

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- The greatest integer that a Lua number represents exactly.
local MOST = 9007199254740992

local function integer(number)
  return string.format('%.0f', math.min(number, MOST))
end

-- The id of the server's replication history, which changes with a restart or a failover. '-' if INFO is not permitted.
local function present_history()
  local info = redis.pcall('INFO', 'replication')
  local id = type(info) == 'string' and string.match(info, 'master_replid:(%w+)')
  if not id then
    info = redis.pcall('INFO', 'server')
    id = type(info) == 'string' and string.match(info, 'run_id:(%w+)')
  end
  return id or '-'
end

-- Renews the lease. Holders renew four times per lease, so the newest lease normally has more than half of its time
-- left. If it has less, the server or the network was down: no lease may then expire for one more full lease, so that
-- every holder has time to renew.
local function renew()
  local newest = redis.call('ZREVRANGE', LEASE, 0, 0, 'WITHSCORES')[2]
  if newest and tonumber(newest) < now + lease / 2 then
    redis.call('SET', GRACE, integer(now), 'PX', integer(lease))
  end
  redis.call('ZADD', LEASE, integer(now + lease), rid)
  redis.call('HSET', SEQ, rid, ARGV[4])
end

-- Renews the lease and returns nil if this holder may make changes; else returns the answer. LOST: the store is not the
-- known one, or the lease is missing. `enter` tells which.
local function refuse()
  if redis.call('GET', INCARNATION) ~= incarnation
    or history ~= '-' and present_history() ~= history
    or not redis.call('ZSCORE', LEASE, rid) then
    return {'LOST'}
  end
  -- A dropped call may arrive after later ones, over a dropped connection.
  if seq <= tonumber(redis.call('HGET', SEQ, rid) or 0) then
    return {'STALE'}
  end
  renew()
end

-- The member of a holder's set for a session. Neither a generation nor a session id contains a space.
local function member(generation, id)
  return generation .. ' ' .. id
end
