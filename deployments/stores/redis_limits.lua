-- The law of cluster/limits.py for one account, whole or not at all. A test holds the two equal on random histories.
-- KEYS: the account, a hash: at = its time, b:<currency> = "spent at period", r:<id> = "until at open currency=taken ...";
-- the leases of its reservations, a sorted set of ids by their ends. ARGV: what is asked, the time ('' for Redis's own),
-- its words. Numbers are written with 17 digits, which bring a double back as it was.

local MINUTE_S, DAY_S = 60, 86400
local account, leases, what = KEYS[1], KEYS[2], ARGV[1]

local function exact(number)
  return string.format('%.17g', number)
end

local function first_day(month)
  local year = math.floor(month / 12)
  local since = month - 12 * year
  local days = 365 * year + math.floor(year / 4) - math.floor(year / 100) + math.floor(year / 400)
  return days + math.floor((153 * since + 2) / 5) - 719468
end

local function turn(period, at)
  local day = math.floor(at / DAY_S)
  if period == 'day' then return day end
  local month = math.floor((day + 719468) / 30.436875)
  if first_day(month) > day then return month - 1 end
  if first_day(month + 1) <= day then return month + 1 end
  return month
end

local now = tonumber(ARGV[2])
if not now then
  local time = redis.call('TIME')
  now = tonumber(time[1]) + tonumber(time[2]) / 1000000
end
local at = math.max(now, tonumber(redis.call('HGET', account, 'at') or '0'))

local buckets = {} -- those that were looked at; `saved` writes them
local function bucket(currency)
  if buckets[currency] == nil then
    local text = redis.call('HGET', account, 'b:' .. currency)
    if not text then return nil end
    local spent, since, period = string.match(text, '^(%S+) (%S+) (%S+)$')
    buckets[currency] = {spent = tonumber(spent), at = tonumber(since), period = period}
  end
  return buckets[currency]
end

local function held(id)
  local text = redis.call('HGET', account, 'r:' .. id)
  if not text then return nil end
  local untill, since, open = string.match(text, '^(%S+) (%S+) (%d)')
  local taken = {}
  for currency, amount in string.gmatch(text, '([%a_]+)=(%S+)') do taken[currency] = tonumber(amount) end
  return {untill = tonumber(untill), at = tonumber(since), open = open == '1', taken = taken}
end

local over = {} -- reservations whose lease has ended
for _, id in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', exact(at))) do
  local ended = held(id)
  over[id] = true
  if ended and ended.open then
    for currency, amount in pairs(ended.taken) do
      local its = bucket(currency)
      if its and its.period == 'held' then its.spent = math.max(0, its.spent - amount) end
    end
  end
end

local function saved(id, kept)
  for gone in pairs(over) do
    redis.call('HDEL', account, 'r:' .. gone)
    redis.call('ZREM', leases, gone)
  end
  redis.call('HSET', account, 'at', exact(at))
  for currency, its in pairs(buckets) do
    redis.call('HSET', account, 'b:' .. currency, exact(its.spent) .. ' ' .. exact(its.at) .. ' ' .. its.period)
  end
  local words = {exact(kept.untill), exact(kept.at), kept.open and '1' or '0'}
  for currency, amount in pairs(kept.taken) do words[#words + 1] = currency .. '=' .. exact(amount) end
  redis.call('HSET', account, 'r:' .. id, table.concat(words, ' '))
  redis.call('ZADD', leases, exact(kept.untill), id)
end

local function spent_by(limit)
  local its = bucket(limit.currency)
  if not its then return 0 end
  local turns = 0
  if limit.period == 'minute' then
    turns = (at - its.at) / MINUTE_S
  elseif limit.period ~= 'held' then
    turns = turn(limit.period, at) - turn(limit.period, its.at)
  end
  return math.max(0, its.spent - limit.amount * turns)
end

-- Words from `first` on: currency, amount, period, asked. Returns at, now, and what is spent of each.
local function standing(first)
  local limits, told = {}, {exact(at), exact(now)}
  for index = first, #ARGV, 4 do
    local limit = {currency = ARGV[index], amount = tonumber(ARGV[index + 1]), period = ARGV[index + 2]}
    limit.asked = tonumber(ARGV[index + 3])
    limit.spent = spent_by(limit)
    limits[#limits + 1] = limit
    told[#told + 1] = exact(limit.spent)
  end
  return limits, told
end

if what == 'state' then
  local _, told = standing(3)
  return told
end

if what == 'reserve' then -- id, lease_s, limits; returns 'granted', 'again' or 'refused' before the standing
  local id, lease_s = ARGV[3], tonumber(ARGV[4])
  local limits, told = standing(5)
  if not over[id] and held(id) then
    table.insert(told, 1, 'again')
    return told
  end
  for _, limit in ipairs(limits) do
    if limit.asked > 0 and limit.spent + limit.asked - limit.amount > 0 then
      table.insert(told, 1, 'refused')
      return told
    end
  end
  local taken = {}
  for _, limit in ipairs(limits) do
    taken[limit.currency] = limit.asked
    buckets[limit.currency] = {spent = limit.spent + limit.asked, at = at, period = limit.period}
  end
  over[id] = nil -- its lease had ended: another reservation under the same id
  saved(id, {untill = at + lease_s, at = at, open = true, taken = taken})
  table.insert(told, 1, 'granted')
  return told
end

if what == 'settle' then -- id, then currency, amount; returns 1, or 0 where nothing is open
  local id, actual = ARGV[3], {}
  for index = 4, #ARGV, 2 do actual[ARGV[index]] = tonumber(ARGV[index + 1]) end
  local its = not over[id] and held(id)
  if not its or not its.open then return 0 end
  for currency, reserved in pairs(its.taken) do
    local of = bucket(currency)
    local used = actual[currency] or reserved
    if of.period == 'held' then used = 0 end
    local returned = false
    if of.period == 'minute' then
      returned = at - its.at >= MINUTE_S
    elseif of.period ~= 'held' then
      returned = turn(of.period, of.at) ~= turn(of.period, its.at)
    end
    if not (used < reserved and returned) then
      of.spent = math.max(0, of.spent + (used - reserved))
    end
  end
  its.open = false
  saved(id, its)
  return 1
end

if what == 'renew' then -- lease_s, ids; returns those that are open
  local lease_s, open = tonumber(ARGV[3]), {}
  for index = 4, #ARGV do
    local id = ARGV[index]
    local its = not over[id] and held(id)
    if its and its.open then
      its.untill = math.max(its.untill, at + lease_s)
      saved(id, its)
      open[#open + 1] = id
    end
  end
  return open
end

return redis.error_reply('limits: ' .. what .. ' is unknown')
