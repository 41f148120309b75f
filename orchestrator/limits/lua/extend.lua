-- Reserves more for a run that goes on: the prompt of a further call, and up to so much of an answer.
-- KEYS: the run's record, the tenant's reservations
-- ARGV: now_us, run, lapse_ms of reservations, prompt tokens, output tokens, price of either
-- Returns for how much of the answer; 0 if a budget has no room, or if the run is settled or not known.
local record = KEYS[1]
local prompt, output, prompt_price, output_price = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])

local r = redis.call('HMGET', record, 'budgets', 'tokens')
if not r[2] then return 0 end

local granted, spent = room(r[1], prompt, output, prompt_price, output_price)
if spent then return 0 end

local tokens, nano = prompt + granted, prompt * prompt_price + granted * output_price
spend(r[1], tokens, nano)
redis.call('HINCRBY', record, 'tokens', whole(tokens))
redis.call('HINCRBY', record, 'nano', whole(nano))
redis.call('PERSIST', record)
redis.call('ZADD', KEYS[2], whole(math.floor(now_us(ARGV[1]) / 1000) + ARGV[3]), ARGV[2])
return granted
