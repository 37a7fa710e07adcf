-- The second part of the scripts of a holder.
local rid, incarnation, history = ARGV[2], ARGV[3], ARGV[4]
local call_number, lease = tonumber(ARGV[5]), tonumber(ARGV[6])
-- When the caller gives up, by the clock of this server (ms). Empty for a call that may be late.
local deadline = tonumber(ARGV[7])

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
  local newest = redis.call('ZREVRANGE', LEASES, 0, 0, 'WITHSCORES')[2]
  if newest and tonumber(newest) < now + lease / 2 then
    redis.call('SET', GRACE_UNTIL, integer(now + lease))
  end
  redis.call('ZADD', LEASES, integer(now + lease), rid)
  redis.call('HSET', CALL_NUMBERS, rid, ARGV[5])
end

-- Renews the lease and returns nil if this holder may make changes; else returns the answer. LOST: the store is not the
-- known one, or the lease is missing. `enter` tells which.
local function refuse()
  if redis.call('GET', INCARNATION) ~= incarnation
    or history ~= '-' and present_history() ~= history
    or not redis.call('ZSCORE', LEASES, rid) then
    return {'LOST'}
  end
  -- The caller may go on as if nothing was changed.
  if deadline and now >= deadline then
    return {word('LATE')}
  end
  -- A dropped call may arrive after later ones, over a dropped connection.
  if call_number <= tonumber(redis.call('HGET', CALL_NUMBERS, rid) or 0) then
    return {'STALE'}
  end
  renew()
end

-- Removes the adoption of each holder that has nothing left. Returns the others.
local function adopted_with_rest()
  local rest = {}
  for _, dead in ipairs(redis.call('SMEMBERS', adopted_key(rid))) do
    if redis.call('EXISTS', held_key(dead), claimed_key(dead)) > 0 then
      rest[#rest + 1] = dead
    else
      redis.call('HDEL', ADOPTERS, dead)
      redis.call('SREM', adopted_key(rid), dead)
    end
  end
  return rest
end
