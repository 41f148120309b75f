-- Creates a run's log with its first events, in batches as append.lua tells; of a run that is over, with all it will ever have.
-- KEYS: events, meta, request, kept
-- ARGV: origin, channel, retention_ms, run (JSON), state, request (JSON), over (0 or 1), places that it holds (keys of sets,
--       separated by spaces), then for each batch: count, keeps, lines
-- Returns {first_seq, count, ms, prev_ms, repeated, closed}, or the code of the refusal.
local FIRST = 9
local events, meta, request, kept = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local retention_ms, over = ARGV[3], tonumber(ARGV[7])

if redis.call('EXISTS', meta, events) > 0 then return 'log_exists' end

local time = redis.call('TIME')
local ms = time[1] * 1000 + math.floor(time[2] / 1000)
local seq, lines = 0, {}

for i = FIRST, #ARGV, 3 do
  seq = seq + ARGV[i]
  redis.call('XADD', events, ms .. '-' .. seq, ARGV[i], ARGV[i + 2])
  if ARGV[i + 1] == '1' then redis.call('RPUSH', kept, ms .. '-' .. seq) end
  lines[#lines + 1] = ARGV[i + 2]
end

redis.call('HSET', meta, 'run', ARGV[4], 'state', ARGV[5], 'seq', seq, 'ms', ms, 'refreshed', ms)
if over == 1 then redis.call('HSET', meta, 'closed', '1', 'started', ms, 'ended', ms) end
if ARGV[8] ~= '' then redis.call('HSET', meta, 'held', ARGV[8]) end
redis.call('SET', request, ARGV[6], 'PX', retention_ms)
redis.call('PEXPIRE', events, retention_ms)
redis.call('PEXPIRE', meta, retention_ms)
redis.call('PEXPIRE', kept, retention_ms)

if seq > 0 then
  redis.call('PUBLISH', ARGV[2], ARGV[1] .. ' 0 ' .. seq .. ' ' .. ms .. ' 0\n' .. table.concat(lines, '\n'))
end
return {1, seq, ms, 0, 0, over}
