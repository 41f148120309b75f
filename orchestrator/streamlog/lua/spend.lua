-- Counts tokens that all agents of a run share.
-- KEYS: meta
-- ARGV: used, wanted (negative: given back), most
-- Returns {granted, used, held}, or the code of the refusal.
local meta = KEYS[1]
local used, wanted, most = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])

local m = redis.call('HMGET', meta, 'seq', 'held', 'used')
if not m[1] then return 'log_missing' end

local held = tonumber(m[2] or 0)
local granted = math.min(wanted, math.max(most - held, 0))
held, used = held + granted, tonumber(m[3] or 0) + used
redis.call('HSET', meta, 'held', held, 'used', used)
return {granted, used, held}
