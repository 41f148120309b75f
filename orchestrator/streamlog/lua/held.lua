-- Tells for how long some writer's lease is still live.
-- KEYS: meta
-- Returns milliseconds; 0 if nobody holds one or the log is closed.
local m = redis.call('HGETALL', KEYS[1])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local held = 0
for i = 1, #m, 2 do
  if m[i] == 'closed' then return 0 end
  if string.sub(m[i], 1, 2) == 'l:' then
    held = math.max(held, tonumber(string.match(m[i + 1], ' (%d+)')) - now)
  end
end
return held
