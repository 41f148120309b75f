-- Finds the batch with the event numbered `seq`, or the first later one that is still there, without knowing its time.
-- KEYS: events
-- ARGV: seq
-- Returns it as XRANGE does, in a list, or an empty list. What a batch is, is told in append.lua.
local events, target = KEYS[1], tonumber(ARGV[1])

local function range(from) return redis.call('XRANGE', events, from, '+', 'COUNT', 1) end

-- The numbers of a batch's first and last event, and their time.
local function span(batch)
  local ms, last = string.match(batch[1], '(%d+)-(%d+)')
  return last - batch[2][1] + 1, tonumber(last), tonumber(ms)
end

local oldest = range('-')
if not oldest[1] then return {} end
local _, last, low = span(oldest[1])
if last >= target then return oldest end

local newest = redis.call('XREVRANGE', events, '+', '-', 'COUNT', 1)
local first, tail, high = span(newest[1])
if tail < target then return {} end
if first <= target then return newest end

-- seq grows with time: the latest time whose first batch does not begin past the target is the target's own.
while low < high do
  local middle = math.ceil((low + high) / 2)
  local first, _, ms = span(range(middle)[1])
  if first <= target then low = ms else high = middle - 1 end
end
return range(low .. '-' .. target)
