-- Releases the lease. Another holder adopts this one at once, if anything is left.
if redis.call('GET', INCARNATION) ~= incarnation then
  return {'LOST'}
end
if redis.call('ZREM', LEASES, rid) == 1 then
  adopted_with_rest()
  if redis.call('EXISTS', held_key(rid), claimed_key(rid), adopted_key(rid)) > 0 then
    redis.call('ZADD', UNADOPTED, integer(now), rid)
  end
  redis.call('HDEL', CALL_NUMBERS, rid)
  redis.call('UNLINK', notices_key(rid))
end
return {word('OK')}
