-- Finds the event numbered `seq`, or the first later one that is still there, without knowing its time.
-- KEYS: events
-- ARGV: seq, limit
-- Returns up to `limit` entries from there on.
local events, target, limit = KEYS[1], tonumber(ARGV[1]), ARGV[2]

local function parse(entries)
  if not entries[1] then return nil end
  local ms, seq = string.match(entries[1][1], '(%d+)-(%d+)')
  return tonumber(ms), tonumber(seq)
end

local first_ms, first_seq = parse(redis.call('XRANGE', events, '-', '+', 'COUNT', 1))
if not first_ms then return {} end
if first_seq >= target then return redis.call('XRANGE', events, '-', '+', 'COUNT', limit) end

local last_ms, last_seq = parse(redis.call('XREVRANGE', events, '+', '-', 'COUNT', 1))
if last_seq < target then return {} end

-- seq grows with time: the latest time from which on the first event is not past the target is the target's own.
local low, high = first_ms, last_ms
while low < high do
  local middle = math.ceil((low + high) / 2)
  local ms, seq = parse(redis.call('XRANGE', events, middle, '+', 'COUNT', 1))
  if seq <= target then low = ms else high = middle - 1 end
end
return redis.call('XRANGE', events, low .. '-' .. target, '+', 'COUNT', limit)
