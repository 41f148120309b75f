-- Creates a run's log with its first events.
-- KEYS: events, meta, request, kept
-- ARGV: origin, channel, retention_ms, run (JSON), state, request (JSON), events...
-- Returns {first_seq, count, ms, prev_ms, repeated, closed}, or the code of the refusal.
local FIRST = 7
local events, meta, request, kept = KEYS[1], KEYS[2], KEYS[3], KEYS[4]

if redis.call('EXISTS', meta, events) > 0 then return 'log_exists' end

local time = redis.call('TIME')
local ms = time[1] * 1000 + math.floor(time[2] / 1000)

local seq = 0
for i = FIRST, #ARGV do
  seq = seq + 1
  redis.call('XADD', events, ms .. '-' .. seq, 'e', ARGV[i])
  redis.call('RPUSH', kept, ms .. '-' .. seq)
end

redis.call('HSET', meta, 'run', ARGV[4], 'state', ARGV[5], 'seq', seq, 'ms', ms, 'refreshed', ms)
redis.call('SET', request, ARGV[6], 'PX', ARGV[3])
redis.call('PEXPIRE', events, ARGV[3])
redis.call('PEXPIRE', meta, ARGV[3])
redis.call('PEXPIRE', kept, ARGV[3])

if seq > 0 then
  redis.call('PUBLISH', ARGV[2], ARGV[1] .. ' 0 0 ' .. ms .. ' ' .. seq .. '\n' .. table.concat(ARGV, '\n', FIRST))
end
return {1, seq, ms, 0, 0, 0}
