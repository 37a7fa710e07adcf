-- Releases the lease. The other holders recover the remaining sessions and ends at once.
if redis.call('GET', INCARNATION) ~= incarnation then
  return {'LOST'}
end
if redis.call('ZREM', LEASE, rid) == 1 then
  if redis.call('EXISTS', HELD, CLAIMED) > 0 then
    redis.call('ZADD', REAPING, integer(now), rid)
  end
  redis.call('HDEL', SEQ, rid)
  redis.call('DEL', TOLD)
end
return {'OK'}
