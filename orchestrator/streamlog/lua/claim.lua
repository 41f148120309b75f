-- Takes, renews or releases a writer's lease for an attempt.
-- KEYS: meta
-- ARGV: writer, attempt, lease_ms (0 releases)
-- Returns {held_ms, tail_seq}, or the code of the refusal.
local meta = KEYS[1]
local writer, attempt, lease_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

local m = redis.call('HMGET', meta, 'seq', 'closed', 'w:' .. writer, 'l:' .. writer)
local seq = tonumber(m[1])
if not seq then return 'log_missing' end
if m[2] then return 'log_closed' end

local latest = tonumber(string.match(m[3] or '0', '%d+'))
if attempt < latest then return 'fenced' end

local holder, until_ms = string.match(m[4] or '0 0', '(%d+) (%d+)')
holder, until_ms = tonumber(holder), tonumber(until_ms)
if lease_ms == 0 then
  if holder == attempt then redis.call('HDEL', meta, 'l:' .. writer) end
  return {0, seq}
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if holder < attempt and until_ms > now then return {until_ms - now, seq} end

redis.call('HSET', meta, 'l:' .. writer, attempt .. ' ' .. now + lease_ms)
if attempt > latest then redis.call('HSET', meta, 'w:' .. writer, attempt .. ' 0') end
return {0, seq}
