-- Appends events to a run's log in one step. The promises are in log.py.
-- Events that are appended together are stored together, as far as they fit: an entry of the stream is a batch. Its id is
-- {ms}-{seq of its last event}; its one field is named by the number of its events and holds them, one per line.
-- KEYS: events, meta, request, kept (the ids of all batches that are not deltas only)
-- ARGV: origin, channel, retention_ms, refresh_ms, max_events, writer, attempt, producer_seq,
--       state ('' for none), the states it may follow, ends (0 or 1), lease_ms, then for each batch: count, keeps (0: deltas
--       only), lines
-- Returns {first_seq, count, ms, prev_ms, repeated, closed}, or the code of the refusal.
local FIRST = 13
local ACK_WINDOW = 16
local STARTED = '{"type":"AGENT_STARTED"'

-- Lua's own way from a number to text costs more than storing an event does. So numbers are made text by this, and once.
local function text(number) return string.format('%d', number) end

local events, meta, request, kept = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local retention_ms, max_events = ARGV[3], tonumber(ARGV[5])
local writer, attempt, producer_seq = ARGV[6], tonumber(ARGV[7]), tonumber(ARGV[8])
local state, ends, lease_ms = ARGV[9], ARGV[11] == '1', tonumber(ARGV[12])
local ack = 'a:' .. writer .. ':' .. text(producer_seq % ACK_WINDOW)

local m = redis.call('HMGET', meta, 'seq', 'ms', 'closed', 'state', 'started', 'refreshed', 'w:' .. writer)
local prev_seq, prev_ms, closed, was, started, refreshed = tonumber(m[1]), tonumber(m[2]), m[3], m[4], m[5], tonumber(m[6])
if not prev_seq then return 'log_missing' end

local latest, appends = 0, 0
if m[7] then
  local a, n = string.match(m[7], '(%d+) (%d+)')
  latest, appends = tonumber(a), tonumber(n)
end

if producer_seq > 0 and attempt == latest and producer_seq <= appends then
  local key, before, count, ms, before_ms = string.match(redis.call('HGET', meta, ack) or '', '(%d+ %d+) (%d+) (%d+) (%d+) (%d+)')
  if key ~= ARGV[7] .. ' ' .. ARGV[8] then return 'append_forgotten' end
  return {before + 1, tonumber(count), tonumber(ms), tonumber(before_ms), 1, closed and 1 or 0}
end
if closed then return 'log_closed' end
if attempt < latest then return 'fenced' end
if attempt > latest then appends = 0 end
if producer_seq > appends + 1 then return 'append_skipped' end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ms = math.max(now, prev_ms)
local ms_text, seq, lines = text(ms), prev_seq, {}

for i = FIRST, #ARGV, 3 do
  seq = seq + ARGV[i]
  local id = ms_text .. '-' .. text(seq)
  redis.call('XADD', events, id, ARGV[i], ARGV[i + 2])
  if ARGV[i + 1] == '1' then redis.call('RPUSH', kept, id) end
  lines[#lines + 1] = ARGV[i + 2]
end
local count = seq - prev_seq

-- What both a repetition of this append and whoever watches the run have to know.
local place = m[1] .. ' ' .. text(count) .. ' ' .. ms_text .. ' ' .. m[2]

-- Now and then, drop the batches at the head that hold none of the newest `max_events` events.
local trim_every = math.min(1000, math.ceil(max_events / 8))
if seq > max_events and seq % trim_every < count then
  local function last_seq(id) return tonumber(string.match(id, '%d+$')) end

  local oldest, looked_at = nil, 0
  repeat  -- it reads what it drops, so there is a bound to that
    for _, batch in ipairs(redis.call('XRANGE', events, oldest and '(' .. oldest or '-', '+', 'COUNT', 32)) do
      oldest = batch[1]
      if last_seq(oldest) > seq - max_events then break end
    end
    looked_at = looked_at + 32
  until last_seq(oldest) > seq - max_events or looked_at >= 2048
  redis.call('XTRIM', events, 'MINID', '~', oldest)

  local first_id = redis.call('XRANGE', events, '-', '+', 'COUNT', 1)[1][1]
  local id = redis.call('LINDEX', kept, 0)
  while id and last_seq(id) < last_seq(first_id) do
    redis.call('LPOP', kept)
    id = redis.call('LINDEX', kept, 0)
  end
end

if producer_seq > 0 then appends = producer_seq end
local set = {'HSET', meta, 'seq', text(seq), 'ms', ms_text, 'w:' .. writer, ARGV[7] .. ' ' .. text(appends)}
local function also(field, value)
  set[#set + 1] = field
  set[#set + 1] = value
end

if producer_seq > 0 then also(ack, ARGV[7] .. ' ' .. ARGV[8] .. ' ' .. place) end
if lease_ms > 0 then
  also('l:' .. writer, ARGV[7] .. ' ' .. text(now + lease_ms))
elseif attempt > latest then
  also('l:' .. writer, ARGV[7] .. ' 0')
end
if state ~= '' and string.find(ARGV[10], was, 1, true) then
  also('state', state)
  -- A fast agent starts and ends in one append.
  local starts = state == 'RUNNING' or ends and string.find(table.concat(lines, '\n'), STARTED, 1, true)
  if starts and not started then also('started', ms_text) end
end
if ends then
  also('closed', '1')
  also('ended', ms_text)
  -- Whoever reads that it has ended finds its place free.
  for place in string.gmatch(redis.call('HGET', meta, 'held') or '', '%S+') do
    redis.call('ZREM', place, string.match(meta, '{(.*)}'))
  end
end
if ends or now - refreshed >= tonumber(ARGV[4]) then
  also('refreshed', text(now))
  redis.call('PEXPIRE', events, retention_ms)
  redis.call('PEXPIRE', meta, retention_ms)
  redis.call('PEXPIRE', request, retention_ms)
  redis.call('PEXPIRE', kept, retention_ms)
end
redis.call(unpack(set))

if count > 0 then redis.call('PUBLISH', ARGV[2], ARGV[1] .. ' ' .. place .. '\n' .. table.concat(lines, '\n')) end
return {prev_seq + 1, count, ms, prev_ms, 0, ends and 1 or 0}
