-- Gives a name to the run of its first caller, and tells all others which run has it.
-- KEYS: reservation
-- ARGV: run_id, digest, keep_ms, instead_of (a run's id, '*' for whoever has it, '' for nobody)
-- Returns {run_id, digest} of the run that has the name now.
local held = redis.call('GET', KEYS[1])
if held then
  local run_id, digest = string.match(held, '^(%S+) (%S+)$')
  if ARGV[4] ~= '*' and ARGV[4] ~= run_id then return {run_id, digest} end
end
redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. ARGV[2], 'PX', ARGV[3])
return {ARGV[1], ARGV[2]}
