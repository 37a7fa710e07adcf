-- What every script begins with.
local INCARNATION, LEASE, REAPING, FENCED, GRACE, SEQ = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local HELD, CLAIMED, TOLD = KEYS[7], KEYS[8], KEYS[9]
local rid, incarnation, history = ARGV[1], ARGV[2], ARGV[3]
local seq, lease = tonumber(ARGV[4]), tonumber(ARGV[5])

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- Above this a number of Lua is no longer exact.
local MOST = 9007199254740992

local function integer(number)
  return string.format('%.0f', math.min(number, MOST))
end

-- The server's replication history: another one after a restart and after a failover. '-' if we may not ask.
local function present_history()
  local info = redis.pcall('INFO', 'replication')
  local id = type(info) == 'string' and string.match(info, 'master_replid:(%w+)')
  if not id then
    info = redis.pcall('INFO', 'server')
    id = type(info) == 'string' and string.match(info, 'run_id:(%w+)')
  end
  return id or '-'
end

-- Renews the lease. Of holders that beat four times in a lease the newest lease has more than half of it left. If it
-- has not, nobody was heard for a while, so that it was the server that was away, or the way to it: then no lease is
-- taken from anybody before all have had the time to renew theirs.
local function renew()
  local newest = redis.call('ZREVRANGE', LEASE, 0, 0, 'WITHSCORES')[2]
  if newest and tonumber(newest) < now + lease / 2 then
    redis.call('SET', GRACE, integer(now), 'PX', integer(lease))
  end
  redis.call('ZADD', LEASE, integer(now + lease), rid)
  redis.call('HSET', SEQ, rid, ARGV[4])
end

-- Nil for a holder that may change something, whose lease is renewed then; else the answer. Lost: the store is not the
-- one that it knew, or its lease is gone. Why, `enter` says.
local function refuse()
  if redis.call('GET', INCARNATION) ~= incarnation
    or history ~= '-' and present_history() ~= history
    or not redis.call('ZSCORE', LEASE, rid) then
    return {'LOST'}
  end
  -- A call that was given up may arrive after later ones, over a connection that is given up too.
  if seq <= tonumber(redis.call('HGET', SEQ, rid) or 0) then
    return {'STALE'}
  end
  renew()
end

-- What a holder's set says of a session that it holds: neither an event id nor a session id has a space.
local function member(generation, id)
  return generation .. ' ' .. id
end
