-- The batches of a run that are not deltas only, from the index that `append` keeps of them. What was trimmed is left out.
-- KEYS: events, kept
-- ARGV: the id of the last batch the caller has ('' for none), the most to return
-- Returns {last, batch...}, the batches as XRANGE gives them. `last` is the id to go on after, '' if that was all.
local place = 0
if ARGV[1] ~= '' then place = (redis.call('LPOS', KEYS[2], ARGV[1]) or -1) + 1 end  -- trimmed: then so was all before it

local ids = redis.call('LRANGE', KEYS[2], place, place + ARGV[2] - 1)
local found = {#ids == tonumber(ARGV[2]) and ids[#ids] or ''}
for _, id in ipairs(ids) do
  found[#found + 1] = redis.call('XRANGE', KEYS[1], id, id)[1]
end
return found
