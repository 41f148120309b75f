-- The events of a run that are kept for good, which are all but the deltas, from the index that `append` keeps of them.
-- KEYS: events, kept
-- ARGV: how many to pass over, the most to return
-- Returns what XRANGE would: {stream_id, {field, value}} each. What was trimmed is left out.
local first = tonumber(ARGV[1])
local found = {}
for _, id in ipairs(redis.call('LRANGE', KEYS[2], first, first + ARGV[2] - 1)) do
  found[#found + 1] = redis.call('XRANGE', KEYS[1], id, id)[1]
end
return found
