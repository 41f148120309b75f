-- What the scripts about limits share; it is put in front of each of them. The promises are in limits.py.
-- Limits come as text, one per line, their fields separated by tabs, as `plan.py` writes them. The keys that are named there, and
-- in a run's record, have the hash tag of KEYS: it is the tenant's.
local MINUTE_US = 60000000

-- Levels are fractions of a request or a token. What rounding makes of them refuses nobody who waited as long as he was told.
local SLACK = 1e-6

-- Redis's own time if `text` is 0: replicas' clocks differ, and all have to count with one.
local function now_us(text)
  local given = tonumber(text)
  if given > 0 then return given end
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end

-- A number as Redis stores it and counts on. Lua would write large ones with an exponent, and minus zero as such.
local function whole(number) return string.format('%.0f', number + 0) end

local function lines(text) return string.gmatch(text or '', '[^\n]+') end

-- A limit per minute is a leaky bucket, as in GCRA: how much of it is in use leaks away at an even rate, and there is never more
-- in it than the limit. So a minute's worth may come at once, and then as much as the rate lets through.
local function level(key, limit, now)
  local used, at = string.match(redis.call('GET', key) or '0 0', '(%S+) (%S+)')
  return math.max(0, used - math.max(0, now - at) * limit / MINUTE_US)
end

local function set_level(key, limit, used, now)
  redis.call('SET', key, string.format('%.17g %.0f', used, now), 'PX', whole(math.ceil(used / limit * 60000) + 1000))
end

-- The set at `key` holds who is in it until when. What lapsed is out. Is there room for one more, or is it in already?
local function has_room(key, limit, member, now_ms)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', whole(now_ms))
  return redis.call('ZCARD', key) < limit or redis.call('ZSCORE', key, member)
end

local function enter(key, member, now_ms, lapse_ms)
  redis.call('ZADD', key, whole(now_ms + lapse_ms), member)
  redis.call('PEXPIRE', key, lapse_ms)
end

-- For how much of an answer all budgets have room after its prompt, up to `output`; and a budget that has no room for any.
local function room(budgets, prompt, output, prompt_price, output_price)
  local place, least = 0, math.min(1, output)
  for line in lines(budgets) do
    place = place + 1
    local key, tokens, nano = string.match(line, '^([^\t]*)\t([^\t]*)\t([^\t]*)')
    local given = redis.call('HMGET', key, 'tokens', 'nano')
    if tokens ~= '' then output = math.min(output, tokens - (given[1] or 0) - prompt) end
    if nano ~= '' then
      local left = nano - (given[2] or 0) - prompt * prompt_price
      if output_price > 0 then
        output = math.min(output, math.floor(left / output_price))
      elseif left < 0 then
        output = -1
      end
    end
    if output < least then return 0, place end
  end
  return output
end

-- `tokens` and `nano` are reserved, or given back if they are negative.
local function spend(budgets, tokens, nano)
  for line in lines(budgets) do
    local key, expire_ms = string.match(line, '^([^\t]*)\t[^\t]*\t[^\t]*\t(.*)')
    redis.call('HINCRBY', key, 'tokens', whole(tokens))
    redis.call('HINCRBY', key, 'nano', whole(nano))
    redis.call('PEXPIRE', key, expire_ms)
  end
end
