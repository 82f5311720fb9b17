"""Sessions kept in Redis, which several servers share.

::

    bytelm:session:ID     a hash: owner, version, ttl, expires_at, meta, head
    bytelm:trunk:ID       bytes, which most versions only append to
    bytelm:owner:OWNER    a sorted set of this owner's ids, all with the score 0: sorted by id
    bytelm:living         a sorted set of all ids, by when they expire
    bytelm:replies:ABOUT  a hash: answers by name, and ``:until``, when they expire
    bytelm:replied:ABOUT  a list of the names, the oldest first

The first format had ``bytelm:reply:NAME``, a hash of body and expires_at, and the last reply in the
session's hash; both are still read.

Every change is one script, which Redis runs alone: it compares the version first, so two servers
never both follow the same one. What survives a crash of Redis is what its own settings let survive
(``appendonly``); it must not evict keys (``maxmemory-policy noeviction``). The keys of a session
lie in different slots: no cluster.
"""

from collections.abc import Awaitable
from typing import Any, TypeVar

from redis import Redis as BlockingRedis
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as NoConnection
from redis.exceptions import OutOfMemoryError, RedisError
from redis.exceptions import TimeoutError as NoAnswer

from bytelm.errors import InputError
from bytelm_server.errors import Unavailable
from bytelm_server.stores import (
    TOMBSTONE_SECONDS,
    Changed,
    Full,
    Record,
    Reply,
    SessionStore,
    first_format,
    redis_scripts,
)

T = TypeVar("T")

ANSWER_SECONDS = 10.0
"""How long Redis may take."""
SWEPT = 500
"""How many expired records one sweep lets go of."""

_LISTED = ["version", "ttl", "expires_at", "meta"]


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

    is_shared = True

    def __init__(self, url: str, most: int) -> None:
        self.most = most
        try:
            with BlockingRedis.from_url(url, socket_timeout=ANSWER_SECONDS) as probe:
                probe.ping()
            self._redis = Redis.from_url(
                url,
                socket_timeout=ANSWER_SECONDS,
                socket_connect_timeout=ANSWER_SECONDS,
                # A change that Redis may have made must not be sent again.
                retry=Retry(NoBackoff(), 0),
            )
        except (RedisError, ValueError, OSError) as error:
            reason = " ".join(str(error).split())
            raise NoRedis(
                f"sessions cannot be kept at the address of --session-store: {reason}"
            ) from None
        register, scripts = self._redis.register_script, redis_scripts
        self._load, self._reply = register(scripts.LOAD), register(scripts.REPLY)
        self._keep, self._create = register(scripts.KEEP), register(scripts.CREATE)
        self._commit, self._touch = register(scripts.COMMIT), register(scripts.TOUCH)
        self._prolong, self._delete = (
            register(scripts.PROLONG),
            register(scripts.DELETE),
        )
        self._end = register(scripts.END)

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
                    *_told(reply),
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

    async def keep(self, reply: Reply, now: float) -> bytes | None:
        """See ``SessionStore``."""
        keys = _keys(reply.about, "", reply)
        known: bytes | None = await _answered(self._keep(keys, [repr(now), *_told(reply)]))
        return known

    async def reply(self, about: str, name: str, now: float) -> bytes | None:
        """See ``SessionStore``."""
        known, (owner, last) = await _answered(self._reply(_keys(about), [name, repr(now)]))
        if known is None and last is not None:
            its_name, body = first_format.reply_of(owner.decode(), about, last)
            return body if its_name == name else None
        found: bytes | None = known
        return found

    async def load(self, session_id: str) -> Record | None:
        """See ``SessionStore``."""
        # A script, since a transaction is refused where Redis has no room.
        found, data = await _answered(self._load(_keys(session_id)))
        fields = dict(zip(found[::2], found[1::2], strict=True))
        return _record(session_id, fields, data or b"") if fields else None

    async def look(self, session_id: str) -> Record | None:
        """See ``SessionStore``."""
        found = await self._do("HMGET", _keys(session_id)[0], "owner", *_LISTED)
        fields = dict(zip((b"owner", *map(str.encode, _LISTED)), found, strict=True))
        return _record(session_id, fields) if fields[b"owner"] is not None else None

    async def commit(self, record: Record, expected: int, kept: int, reply: Reply | None) -> None:
        """See ``SessionStore``."""
        done = await _answered(
            self._commit(
                _keys(record.id, record.owner),
                [
                    TOMBSTONE_SECONDS,
                    record.id,
                    expected,
                    kept,
                    *_told(reply),
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

    async def prolong(self, session_id: str, expires_at: float) -> None:
        """See ``SessionStore``."""
        await _answered(
            self._prolong(_keys(session_id), [TOMBSTONE_SECONDS, session_id, repr(expires_at)])
        )

    async def delete(self, session_id: str, expected: int, reply: Reply | None) -> None:
        """See ``SessionStore``."""
        owner = await self._do("HGET", _keys(session_id)[0], "owner")
        try:
            done = await _answered(
                self._delete(
                    _keys(session_id, (owner or b"").decode(), reply),
                    [TOMBSTONE_SECONDS, session_id, expected, *_told(reply)],
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

    async def check(self) -> None:
        """See ``SessionStore``."""
        await self._do("SET", "bytelm:check", "", "PX", 1)

    async def _do(self, *command: Any) -> Any:
        return await _answered(self._redis.execute_command(*command))


def _keys(session_id: str, owner: str = "", reply: Reply | None = None) -> list[str]:
    return [
        f"bytelm:session:{session_id}",
        f"bytelm:trunk:{session_id}",
        "bytelm:living",
        f"bytelm:owner:{owner}",
        f"bytelm:replies:{reply.about if reply else session_id}",
        f"bytelm:replied:{reply.about if reply else session_id}",
    ]


def _told(reply: Reply | None) -> list[Any]:
    """What scripts are told of a reply: name, body, expires_at."""
    return [reply.name, reply.body, repr(reply.expires_at)] if reply else ["", b"", ""]


def _fields(record: Record) -> list[Any]:
    """What each version writes."""
    return [
        "version",
        record.version,
        "expires_at",
        repr(record.expires_at),
        "meta",
        record.meta,
        "head",
        record.head,
    ]


def _record(session_id: str, fields: dict[bytes, bytes], trunk: bytes = b"") -> Record:
    return Record(
        id=session_id,
        owner=fields[b"owner"].decode(),
        version=int(fields[b"version"]),
        ttl=float(fields[b"ttl"]),
        expires_at=float(fields[b"expires_at"]),
        meta=fields[b"meta"],
        head=fields.get(b"head", b""),
        trunk=trunk,
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
