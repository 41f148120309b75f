-- Appends events to a run's log in one step. The promises are in log.py.
-- KEYS: events, meta, request, kept (the ids of all events but deltas)
-- ARGV: origin, channel, retention_ms, refresh_ms, max_events, writer, attempt, producer_seq,
--       state ('' for none), the states it may follow, ends (0 or 1), lease_ms, events...
-- Returns {first_seq, count, ms, prev_ms, repeated, closed}, or the code of the refusal.
local FIRST = 13
local ACK_WINDOW = 16
local DELTA = '{"type":"LLM_PARTIAL"'
local events, meta, request, kept = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local retention_ms, max_events = ARGV[3], tonumber(ARGV[5])
local writer, attempt, producer_seq = ARGV[6], tonumber(ARGV[7]), tonumber(ARGV[8])
local state, ends, lease_ms = ARGV[9], ARGV[11] == '1', tonumber(ARGV[12])
local ack = 'a:' .. writer .. ':' .. producer_seq % ACK_WINDOW

local m = redis.call('HMGET', meta, 'seq', 'ms', 'closed', 'state', 'started', 'refreshed', 'w:' .. writer)
local seq, prev_ms, closed, was, started, refreshed = tonumber(m[1]), tonumber(m[2]), m[3], m[4], m[5], tonumber(m[6])
if not seq then return 'log_missing' end

local latest, appends = 0, 0
if m[7] then
  local a, n = string.match(m[7], '(%d+) (%d+)')
  latest, appends = tonumber(a), tonumber(n)
end

if producer_seq > 0 and attempt == latest and producer_seq <= appends then
  local key, first, count, at, before = string.match(redis.call('HGET', meta, ack) or '', '(%d+ %d+) (%d+) (%d+) (%d+) (%d+)')
  if key ~= attempt .. ' ' .. producer_seq then return 'append_forgotten' end
  return {tonumber(first), tonumber(count), tonumber(at), tonumber(before), 1, closed and 1 or 0}
end
if closed then return 'log_closed' end
if attempt < latest then return 'fenced' end
if attempt > latest then appends = 0 end
if producer_seq > appends + 1 then return 'append_skipped' end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ms = math.max(now, prev_ms)
local prev_seq, count = seq, #ARGV - FIRST + 1

for i = FIRST, #ARGV do
  seq = seq + 1
  local id = ms .. '-' .. seq
  redis.call('XADD', events, id, 'e', ARGV[i])
  if string.sub(ARGV[i], 1, #DELTA) ~= DELTA then redis.call('RPUSH', kept, id) end
end
if seq > max_events then redis.call('XTRIM', events, 'MAXLEN', '~', max_events) end

local set = {'HSET', meta, 'seq', seq, 'ms', ms, 'w:' .. writer, attempt .. ' ' .. math.max(producer_seq, appends)}
local function also(field, value)
  set[#set + 1] = field
  set[#set + 1] = value
end

if producer_seq > 0 then
  also(ack, attempt .. ' ' .. producer_seq .. ' ' .. prev_seq + 1 .. ' ' .. count .. ' ' .. ms .. ' ' .. prev_ms)
end
if lease_ms > 0 then
  also('l:' .. writer, attempt .. ' ' .. now + lease_ms)
elseif attempt > latest then
  also('l:' .. writer, attempt .. ' 0')
end
if state ~= '' and string.find(ARGV[10], was, 1, true) then
  also('state', state)
  if state == 'RUNNING' and not started then also('started', ms) end
end
if ends then
  also('closed', '1')
  also('ended', ms)
end
if ends or now - refreshed >= tonumber(ARGV[4]) then
  also('refreshed', now)
  redis.call('PEXPIRE', events, retention_ms)
  redis.call('PEXPIRE', meta, retention_ms)
  redis.call('PEXPIRE', request, retention_ms)
  redis.call('PEXPIRE', kept, retention_ms)
end
redis.call(unpack(set))

if count > 0 then
  local head = ARGV[1] .. ' ' .. prev_seq .. ' ' .. prev_ms .. ' ' .. ms .. ' ' .. count .. '\n'
  redis.call('PUBLISH', ARGV[2], head .. table.concat(ARGV, '\n', FIRST))
end
return {prev_seq + 1, count, ms, prev_ms, 0, ends and 1 or 0}
