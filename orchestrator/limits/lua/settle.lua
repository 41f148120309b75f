-- Puts what a run has used in the place of what was reserved for it, once.
-- KEYS: the run's record, the tenant's reservations
-- ARGV: now_us, run, tokens and nano-dollars used, for how long in ms to remember that it is settled
-- Returns 1; 0 if it was settled before, or is not known.
local record = KEYS[1]
local used_tokens, used_nano = tonumber(ARGV[3]), tonumber(ARGV[4])
local now = now_us(ARGV[1])

local r = redis.call('HMGET', record, 'budgets', 'tokens', 'nano', 'rates', 'at')
if not r[2] then return 0 end

spend(r[1], used_tokens - r[2], used_nano - r[3])
for line in lines(r[4]) do
  local key, limit, cost = string.match(line, '^(.*)\t(.*)\t(.*)')
  local more, age = used_tokens - cost, math.max(0, now - r[5])
  -- Of what was estimated too high, some has leaked away since. Nothing comes back twice.
  if more < 0 then more = more * math.max(0, 1 - age / MINUTE_US) end
  limit = tonumber(limit)
  set_level(key, limit, math.max(0, level(key, limit, now) + more), now)
end
redis.call('DEL', record)
redis.call('HSET', record, 'settled', 1)
redis.call('PEXPIRE', record, ARGV[5])
redis.call('ZREM', KEYS[2], ARGV[2])
return 1
