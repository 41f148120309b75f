-- Tells where a log begins and ends.
-- KEYS: events, meta
-- Returns {seq, ms, first_seq, closed}, or nothing.
local m = redis.call('HMGET', KEYS[2], 'seq', 'ms', 'closed')
local seq = tonumber(m[1])
if not seq then return false end

local batch = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
local first_seq = batch and string.match(batch[1], '%d+$') - batch[2][1] + 1 or seq + 1
return {seq, tonumber(m[2]), first_seq, m[3] and 1 or 0}
