"""The scripts by which sessions change in Redis, which runs each of them alone.

Of each script: ``KEYS`` are session, trunk, living, owner, and the replies about what its reply is
about, or about its session: answers and names. Times are in seconds.
"""

from bytelm_server.stores import MOST_REPLIES

_COMMON = f"""
local function outlive(expires_at)
    -- Replies stay as long as any of them wants, and as long as their session.
    local known = tonumber(redis.call('HGET', KEYS[5], ':until') or 0)
    if expires_at <= known then return end
    redis.call('HSET', KEYS[5], ':until', string.format('%.17g', expires_at))
    redis.call('PEXPIREAT', KEYS[5], math.floor(expires_at * 1000))
    redis.call('PEXPIREAT', KEYS[6], math.floor(expires_at * 1000))
end
local function answer(name, body, expires_at)
    if name == '' then return end
    if redis.call('HSET', KEYS[5], name, body) == 1 then
        redis.call('RPUSH', KEYS[6], name)
        if redis.call('LLEN', KEYS[6]) > {MOST_REPLIES} then
            redis.call('HDEL', KEYS[5], redis.call('LPOP', KEYS[6]))
        end
    end
    outlive(tonumber(expires_at))
end
local function answered(name, now)
    local body = redis.call('HGET', KEYS[5], name)
    if body and tonumber(redis.call('HGET', KEYS[5], ':until')) > now then return body end
    -- As the first format kept it.
    local old = redis.call('HMGET', 'bytelm:reply:' .. name, 'body', 'expires_at')
    if old[1] and tonumber(old[2]) > now then return old[1] end
    return false
end
local function live(expires_at)
    local ends = math.floor((expires_at + tonumber(ARGV[1])) * 1000)
    redis.call('PEXPIREAT', KEYS[1], ends)
    redis.call('PEXPIREAT', KEYS[2], ends)
    if redis.call('EXISTS', KEYS[5]) == 1 then outlive(expires_at) end
end
local function is(version)
    return redis.call('HGET', KEYS[1], 'version') == version
        and redis.call('ZSCORE', KEYS[3], ARGV[2])
end
"""

LOAD = "return {redis.call('HGETALL', KEYS[1]), redis.call('GET', KEYS[2])}"
# What the first format kept with the session is there, too.
REPLY = (
    _COMMON
    + """
-- ARGV: name, now
return {answered(ARGV[1], tonumber(ARGV[2])), redis.call('HMGET', KEYS[1], 'owner', 'reply')}
"""
)
KEEP = (
    _COMMON
    + """
-- ARGV: now, reply …
local known = answered(ARGV[2], tonumber(ARGV[1]))
if known then return known end
answer(ARGV[2], ARGV[3], ARGV[4])
"""
)
CREATE = (
    _COMMON
    + """
-- ARGV: tombstone, id, now, most, reply …, trunk, expires_at, fields …
local known = answered(ARGV[5], tonumber(ARGV[3]))
if known then return known end
if redis.call('ZCOUNT', KEYS[3], '(' .. ARGV[3], '+inf') >= tonumber(ARGV[4]) then return 0 end
answer(ARGV[5], ARGV[6], ARGV[7])
for i = 10, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('SET', KEYS[2], ARGV[8])
redis.call('ZADD', KEYS[3], ARGV[9], ARGV[2])
redis.call('ZADD', KEYS[4], 0, ARGV[2])
live(tonumber(ARGV[9]))
return 1
"""
)
COMMIT = (
    _COMMON
    + """
-- ARGV: tombstone, id, expected version, kept, reply …, trunk, expires_at, fields …
if not is(ARGV[3]) then return 0 end
if tonumber(ARGV[4]) == 0 then
    redis.call('SET', KEYS[2], ARGV[8])
elseif redis.call('STRLEN', KEYS[2]) ~= tonumber(ARGV[4]) then
    return 0
elseif ARGV[8] ~= '' then
    redis.call('APPEND', KEYS[2], ARGV[8])
end
for i = 10, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('ZADD', KEYS[3], ARGV[9], ARGV[2])
answer(ARGV[5], ARGV[6], ARGV[7])
live(tonumber(ARGV[9]))
return 1
"""
)
TOUCH = (
    _COMMON
    + """
-- ARGV: tombstone, id, version, expires_at, meta
if not is(ARGV[3]) then return 0 end
redis.call('HSET', KEYS[1], 'expires_at', ARGV[4], 'meta', ARGV[5])
redis.call('ZADD', KEYS[3], ARGV[4], ARGV[2])
live(tonumber(ARGV[4]))
return 1
"""
)
PROLONG = (
    _COMMON
    + """
-- ARGV: tombstone, id, expires_at
local known = redis.call('ZSCORE', KEYS[3], ARGV[2])
if not known or tonumber(known) >= tonumber(ARGV[3]) then return 0 end
redis.call('HSET', KEYS[1], 'expires_at', ARGV[3])
redis.call('ZADD', KEYS[3], ARGV[3], ARGV[2])
live(tonumber(ARGV[3]))
return 1
"""
)
DELETE = (
    _COMMON
    + """
-- ARGV: tombstone, id, expected version, reply …
if not is(ARGV[3]) then return 0 end
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('ZREM', KEYS[3], ARGV[2])
redis.call('ZREM', KEYS[4], ARGV[2])
answer(ARGV[4], ARGV[5], ARGV[6])
return 1
"""
)
END = (
    _COMMON
    + """
-- ARGV: tombstone, id, now
local expires_at = redis.call('ZSCORE', KEYS[3], ARGV[2])
if not expires_at or tonumber(expires_at) > tonumber(ARGV[3]) then return 0 end
redis.call('HSET', KEYS[1], 'meta', '', 'head', '')
redis.call('HDEL', KEYS[1], 'reply')
redis.call('DEL', KEYS[2])
redis.call('ZREM', KEYS[3], ARGV[2])
redis.call('ZREM', KEYS[4], ARGV[2])
live(tonumber(expires_at))
return 1
"""
)
