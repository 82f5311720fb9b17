"""Sessions kept in Redis, which several servers share.

::

    bytelm:session:ID   a hash: owner, version, ttl, expires_at, meta, head, reply
    bytelm:trunk:ID     bytes, which most versions only append to
    bytelm:owner:OWNER  a sorted set of this owner's ids, all with the score 0: sorted by id
    bytelm:living       a sorted set of all ids, by when they expire
    bytelm:reply:NAME   a hash: an answer that is kept by name, expires_at

Every change is one script, which Redis runs alone: it compares the version first, so two servers
never both follow the same one. What survives a crash of Redis is what its own settings let survive
(``appendonly``); it must not evict keys (``maxmemory-policy noeviction``). The keys of a session
lie in different slots: no cluster.
"""

from collections.abc import Awaitable
from typing import Any, ClassVar, TypeVar

from redis import Redis as BlockingRedis
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as NoConnection
from redis.exceptions import OutOfMemoryError, RedisError
from redis.exceptions import TimeoutError as NoAnswer

from bytelm.errors import InputError
from bytelm_server.errors import Unavailable
from bytelm_server.stores import TOMBSTONE_SECONDS, Changed, Full, Record, Reply, SessionStore

T = TypeVar("T")

ANSWER_SECONDS = 10.0
"""How long Redis may take."""
SWEPT = 500
"""How many expired records one sweep lets go of."""

_LISTED = ["version", "ttl", "expires_at", "meta"]

# Of each script: KEYS session, trunk, living, owner, reply. Times are in seconds.
_SET = """
local function keep(expires_at)
    local ends = math.floor((expires_at + tonumber(ARGV[1])) * 1000)
    redis.call('PEXPIREAT', KEYS[1], ends)
    redis.call('PEXPIREAT', KEYS[2], ends)
end
local function answer(body, expires_at)
    redis.call('HSET', KEYS[5], 'body', body, 'expires_at', expires_at)
    redis.call('PEXPIREAT', KEYS[5], math.floor(tonumber(expires_at) * 1000))
end
local function is(version)
    return redis.call('HGET', KEYS[1], 'version') == version
        and redis.call('ZSCORE', KEYS[3], ARGV[2])
end
"""
_LOAD = "return {redis.call('HGETALL', KEYS[1]), redis.call('GET', KEYS[2])}"
_CREATE = (
    _SET
    + """
-- ARGV: tombstone, id, now, most, reply, reply's end, trunk, expires_at, fields …
if ARGV[6] ~= '' then
    local ends = redis.call('HGET', KEYS[5], 'expires_at')
    if ends and tonumber(ends) > tonumber(ARGV[3]) then
        return redis.call('HGET', KEYS[5], 'body')
    end
end
if redis.call('ZCOUNT', KEYS[3], '(' .. ARGV[3], '+inf') >= tonumber(ARGV[4]) then return 0 end
if ARGV[6] ~= '' then
    answer(ARGV[5], ARGV[6])
end
for i = 9, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('SET', KEYS[2], ARGV[7])
redis.call('ZADD', KEYS[3], ARGV[8], ARGV[2])
redis.call('ZADD', KEYS[4], 0, ARGV[2])
keep(tonumber(ARGV[8]))
return 1
"""
)
_COMMIT = (
    _SET
    + """
-- ARGV: tombstone, id, expected version, kept, trunk, expires_at, fields …
if not is(ARGV[3]) then return 0 end
if tonumber(ARGV[4]) == 0 then
    redis.call('SET', KEYS[2], ARGV[5])
elseif redis.call('STRLEN', KEYS[2]) ~= tonumber(ARGV[4]) then
    return 0
elseif ARGV[5] ~= '' then
    redis.call('APPEND', KEYS[2], ARGV[5])
end
redis.call('HDEL', KEYS[1], 'reply')
for i = 7, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('ZADD', KEYS[3], ARGV[6], ARGV[2])
keep(tonumber(ARGV[6]))
return 1
"""
)
_TOUCH = (
    _SET
    + """
-- ARGV: tombstone, id, version, expires_at, meta
if not is(ARGV[3]) then return 0 end
redis.call('HSET', KEYS[1], 'expires_at', ARGV[4], 'meta', ARGV[5])
redis.call('ZADD', KEYS[3], ARGV[4], ARGV[2])
keep(tonumber(ARGV[4]))
return 1
"""
)
_DELETE = (
    _SET
    + """
-- ARGV: tombstone, id, expected version, reply, reply's end
if not is(ARGV[3]) then return 0 end
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('ZREM', KEYS[3], ARGV[2])
redis.call('ZREM', KEYS[4], ARGV[2])
if ARGV[5] ~= '' then
    answer(ARGV[4], ARGV[5])
end
return 1
"""
)
_END = (
    _SET
    + """
-- ARGV: tombstone, id, now
local expires_at = redis.call('ZSCORE', KEYS[3], ARGV[2])
if not expires_at or tonumber(expires_at) > tonumber(ARGV[3]) then return 0 end
redis.call('HSET', KEYS[1], 'meta', '', 'head', '')
redis.call('HDEL', KEYS[1], 'reply')
redis.call('DEL', KEYS[2])
redis.call('ZREM', KEYS[3], ARGV[2])
redis.call('ZREM', KEYS[4], ARGV[2])
keep(tonumber(expires_at))
return 1
"""
)


class NoRedis(InputError):
    """Redis cannot be used; one line that says why."""


class RedisStore(SessionStore):
    """Keeps records in a Redis server.

    Args:
        url: where it is, ``redis://…``, ``rediss://…`` or ``unix://…``.
        most: how many records may live at a time, those of all servers together.

    Raises:
        NoRedis: nothing answers there.
    """

    is_shared: ClassVar[bool] = True

    def __init__(self, url: str, most: int) -> None:
        self.most = most
        try:
            with BlockingRedis.from_url(url, socket_timeout=ANSWER_SECONDS) as probe:
                probe.ping()
            self._redis = Redis.from_url(
                url, socket_timeout=ANSWER_SECONDS, socket_connect_timeout=ANSWER_SECONDS
            )
        except (RedisError, ValueError, OSError) as error:
            reason = " ".join(str(error).split())
            raise NoRedis(
                f"sessions cannot be kept at the address of --session-store: {reason}"
            ) from None
        register = self._redis.register_script
        self._load = register(_LOAD)
        self._create, self._commit = register(_CREATE), register(_COMMIT)
        self._touch, self._delete, self._end = register(_TOUCH), register(_DELETE), register(_END)

    async def close(self) -> None:
        """See ``SessionStore``."""
        await self._redis.aclose()

    async def create(self, record: Record, reply: Reply | None, now: float) -> bytes | None:
        """See ``SessionStore``."""
        done = await _answered(
            self._create(
                _keys(record.id, record.owner, reply),
                [
                    TOMBSTONE_SECONDS,
                    record.id,
                    repr(now),
                    self.most,
                    reply.body if reply else b"",
                    repr(reply.expires_at) if reply else b"",
                    record.trunk,
                    repr(record.expires_at),
                    *_fields(record),
                    "owner",
                    record.owner,
                    "ttl",
                    repr(record.ttl),
                ],
            )
        )
        if done == 0:
            raise Full
        return done if isinstance(done, bytes) else None

    async def reply(self, name: str, now: float) -> bytes | None:
        """See ``SessionStore``."""
        body, expires_at = await self._do("HMGET", f"bytelm:reply:{name}", "body", "expires_at")
        return body if body is not None and float(expires_at) > now else None

    async def load(self, session_id: str) -> Record | None:
        """See ``SessionStore``."""
        # A script, since a transaction is refused where Redis has no room.
        found, data = await _answered(self._load(_keys(session_id)))
        fields = dict(zip(found[::2], found[1::2], strict=True))
        return _record(session_id, fields, data or b"") if fields else None

    async def version(self, session_id: str) -> int | None:
        """See ``SessionStore``."""
        found = await self._do("HGET", _keys(session_id)[0], "version")
        return None if found is None else int(found)

    async def commit(self, record: Record, expected: int, kept: int) -> None:
        """See ``SessionStore``."""
        done = await _answered(
            self._commit(
                _keys(record.id, record.owner),
                [
                    TOMBSTONE_SECONDS,
                    record.id,
                    expected,
                    kept,
                    record.trunk[kept:],
                    repr(record.expires_at),
                    *_fields(record),
                ],
            )
        )
        if not done:
            raise Changed

    async def touch(self, record: Record) -> None:
        """See ``SessionStore``."""
        await _answered(
            self._touch(
                _keys(record.id, record.owner),
                [
                    TOMBSTONE_SECONDS,
                    record.id,
                    record.version,
                    repr(record.expires_at),
                    record.meta,
                ],
            )
        )

    async def delete(self, session_id: str, expected: int, reply: Reply | None) -> None:
        """See ``SessionStore``."""
        owner = await self._do("HGET", _keys(session_id)[0], "owner")
        try:
            done = await _answered(
                self._delete(
                    _keys(session_id, (owner or b"").decode(), reply),
                    [
                        TOMBSTONE_SECONDS,
                        session_id,
                        expected,
                        reply.body if reply else b"",
                        repr(reply.expires_at) if reply else b"",
                    ],
                )
            )
        except Full:
            # It was deleted; there was no room for the reply alone.
            return
        if not done:
            raise Changed

    async def page(self, owner: str, after: str, limit: int, now: float) -> list[Record]:
        """See ``SessionStore``."""
        found: list[Record] = []
        while len(found) < limit:
            ids = await self._do(
                "ZRANGEBYLEX",
                f"bytelm:owner:{owner}",
                f"({after}" if after else "-",
                "+",
                "LIMIT",
                0,
                limit,
            )
            if not ids:
                break
            after = ids[-1].decode()
            async with self._redis.pipeline(transaction=False) as each:
                for one in ids:
                    each.hmget(f"bytelm:session:{one.decode()}", _LISTED)
                rows = await _answered(each.execute())
            for one, (version, ttl, expires_at, meta) in zip(ids, rows, strict=True):
                if version is not None and float(expires_at) > now:
                    found.append(
                        Record(
                            one.decode(), owner, int(version), float(ttl), float(expires_at), meta
                        )
                    )
        return found[:limit]

    async def sweep(self, now: float) -> None:
        """See ``SessionStore``; what expired a day ago Redis forgets by itself."""
        due = await self._do("ZRANGEBYSCORE", "bytelm:living", "-inf", repr(now), "LIMIT", 0, SWEPT)
        for one in due:
            session_id = one.decode()
            owner = await self._do("HGET", _keys(session_id)[0], "owner")
            if owner is None:
                await self._do("ZREM", "bytelm:living", one)
                continue
            await _answered(
                self._end(
                    _keys(session_id, owner.decode()), [TOMBSTONE_SECONDS, session_id, repr(now)]
                )
            )

    async def count(self, now: float) -> int:
        """See ``SessionStore``."""
        return int(await self._do("ZCOUNT", "bytelm:living", f"({now!r}", "+inf"))

    async def _do(self, *command: Any) -> Any:
        return await _answered(self._redis.execute_command(*command))


def _keys(session_id: str, owner: str = "", reply: Reply | None = None) -> list[str]:
    return [
        f"bytelm:session:{session_id}",
        f"bytelm:trunk:{session_id}",
        "bytelm:living",
        f"bytelm:owner:{owner}",
        f"bytelm:reply:{reply.name if reply else ''}",
    ]


def _fields(record: Record) -> list[Any]:
    """What each version writes."""
    written: list[Any] = [
        "version",
        record.version,
        "expires_at",
        repr(record.expires_at),
        "meta",
        record.meta,
        "head",
        record.head,
    ]
    return written if record.reply is None else [*written, "reply", record.reply]


def _record(session_id: str, fields: dict[bytes, bytes], trunk: bytes) -> Record:
    return Record(
        id=session_id,
        owner=fields[b"owner"].decode(),
        version=int(fields[b"version"]),
        ttl=float(fields[b"ttl"]),
        expires_at=float(fields[b"expires_at"]),
        meta=fields[b"meta"],
        head=fields[b"head"],
        trunk=trunk,
        reply=fields.get(b"reply"),
    )


async def _answered(call: Awaitable[T]) -> T:
    """The answer of Redis.

    Raises:
        Unavailable: there is none.
        Full: it has no room.
    """
    try:
        return await call
    except (NoConnection, NoAnswer) as error:
        raise Unavailable(
            "store_unreachable", "the store of sessions does not answer; try again"
        ) from error
    except OutOfMemoryError:
        raise Full from None
