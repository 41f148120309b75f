-- Takes or renews a named lease.
-- KEYS: lease
-- ARGV: owner, ttl_ms
-- Returns 1 if the owner holds it now.
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 end
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
