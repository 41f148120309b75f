-- Lets a run begin: all limits take it, or none does.
-- KEYS: the run's record, the tenant's reservations (run ids and when they lapse)
-- ARGV: now_us, run, lapse_ms of places, lapse_ms of reservations, how long a record is kept in ms, prompt tokens, output tokens,
--       price of either, rates (key, requests|tokens, limit), places (key, limit), budgets (key, tokens, nano, expire_ms),
--       1 if others may admit the same run
-- Returns {what refused it ('' nothing, else rates, places or budgets), which of them, wait_ms (-1: for ever), output tokens that
--       are granted, then for each rate: what remains, reset_ms}
local record, reservations = KEYS[1], KEYS[2]
local run, lapse_ms, reserved_ms, keep_ms = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local prompt, output, prompt_price, output_price = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local rates, places, budgets = ARGV[10], ARGV[11], ARGV[12]
local now = now_us(ARGV[1])
local now_ms = math.floor(now / 1000)

-- Whoever admits a run that has ended meanwhile is about to find it: nothing would give back what it was let in with.
local before = false
if ARGV[13] == '1' then
  local r = redis.call('HMGET', record, 'output', 'settled')
  before = r[1] or (r[2] and 0)
end

-- What was reserved for runs that nobody settled, nor renewed, is given back.
if budgets ~= '' then
  for _, other in ipairs(redis.call('ZRANGEBYSCORE', reservations, '-inf', whole(now_ms), 'LIMIT', 0, 10)) do
    local lapsed = string.sub(record, 1, -#run - 1) .. other
    local r = redis.call('HMGET', lapsed, 'budgets', 'tokens', 'nano')
    if r[2] then
      spend(r[1], -r[2], -r[3])
      redis.call('HSET', lapsed, 'tokens', 0, 'nano', 0)  -- settling it late counts what it has used
      redis.call('PEXPIRE', lapsed, keep_ms)
    end
    redis.call('ZREM', reservations, other)
  end
end

local refused, which, wait_ms, granted = '', 0, 0, tonumber(before)
if not before then
  local spent
  granted, spent = room(budgets, prompt, output, prompt_price, output_price)
  if spent then refused, which = 'budgets', spent end
end

local answer, levels, place = {}, {}, 0
for line in lines(rates) do
  place = place + 1
  local key, kind, limit = string.match(line, '^(.*)\t(.*)\t(.*)')
  limit = tonumber(limit)
  local used, cost = level(key, limit, now), 1
  -- A prompt that fits is let in, however much of an answer is asked for: then it takes all that there is in a minute.
  if kind == 'tokens' then cost = prompt + math.max(0, math.min(granted, limit - prompt)) end
  if before then cost = 0 end
  local excess = used + cost - limit - SLACK
  if excess > 0 and refused ~= 'budgets' and not before then
    local wait = cost > limit and -1 or math.ceil(excess / limit * 60000)
    if wait_ms ~= -1 and (wait == -1 or wait >= wait_ms) then refused, which, wait_ms = 'rates', place, wait end
  end
  levels[place] = {key, kind, limit, used, cost}
end

if refused == '' and not before then
  place = 0
  for line in lines(places) do
    place = place + 1
    local key, limit = string.match(line, '^(.*)\t(.*)')
    if not has_room(key, tonumber(limit), run, now_ms) then
      refused, which = 'places', place
      break
    end
  end
end

local corrected = ''
for _, rate in ipairs(levels) do
  local key, kind, limit, used, cost = unpack(rate)
  if refused == '' and cost > 0 then
    used = used + cost
    set_level(key, limit, used, now)
    if kind == 'tokens' then corrected = corrected .. key .. '\t' .. whole(limit) .. '\t' .. whole(cost) .. '\n' end
  end
  answer[#answer + 1] = math.max(0, math.floor(limit - used + SLACK))
  answer[#answer + 1] = math.max(0, math.ceil((used - SLACK) / limit * 60000))
end

if refused == '' and not before then
  for line in lines(places) do enter(string.match(line, '^[^\t]*'), run, now_ms, lapse_ms) end
  local tokens, nano = prompt + granted, prompt * prompt_price + granted * output_price
  if budgets ~= '' then
    spend(budgets, tokens, nano)
    redis.call('ZADD', reservations, whole(now_ms + reserved_ms), run)
  end
  if budgets ~= '' or corrected ~= '' or ARGV[13] == '1' then
    redis.call(
      'HSET', record, 'tokens', whole(tokens), 'nano', whole(nano), 'budgets', budgets, 'output', whole(granted),
      'rates', corrected, 'at', whole(now)
    )
    if budgets == '' then redis.call('PEXPIRE', record, reserved_ms) end
  end
end
return {refused, which, wait_ms, granted, unpack(answer)}
