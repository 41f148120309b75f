-- Takes a place in sets that hold so many at a time: in all of them, or in none.
-- KEYS: any key of the tenant's
-- ARGV: now_us, who, lapse_ms, places (key, limit)
-- Returns 0, or which of them is full.
local now_ms, place = math.floor(now_us(ARGV[1]) / 1000), 0
for line in lines(ARGV[4]) do
  place = place + 1
  local key, limit = string.match(line, '^(.*)\t(.*)')
  if not has_room(key, tonumber(limit), ARGV[2], now_ms) then return place end
end
for line in lines(ARGV[4]) do enter(string.match(line, '^[^\t]*'), ARGV[2], now_ms, ARGV[3]) end
return 0
