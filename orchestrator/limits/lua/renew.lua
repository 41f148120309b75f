-- Lets places not lapse. Whoever has left stays out.
-- KEYS: a set of places or reservations
-- ARGV: now_us, lapse_ms, who …
local until_ms = whole(math.floor(now_us(ARGV[1]) / 1000) + ARGV[2])
for who = 3, #ARGV do redis.call('ZADD', KEYS[1], 'XX', until_ms, ARGV[who]) end
if redis.call('PTTL', KEYS[1]) > 0 then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 0
