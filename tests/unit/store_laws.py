"""What every store of sessions does; each law gets an open store that is empty."""

import asyncio
from dataclasses import replace

import pytest

from bytelm_server.stores import (
    MOST_REPLIES,
    TOMBSTONE_SECONDS,
    Changed,
    Full,
    Record,
    Reply,
    SessionStore,
)

NOW = 1e9
"""In a store that measures time by itself this must be in the future: see ``later``."""


def record(name: str, now: float, **changes: object) -> Record:
    made = Record(
        id=name,
        owner="me",
        version=1,
        ttl=100.0,
        expires_at=now + 100.0,
        meta=b'{"a":1}',
        head=b"\x00head\xff",
        trunk=b"\x01\x00trunk",
    )
    return replace(made, **changes)  # type: ignore[arg-type]


async def keeps_what_it_is_given(store: SessionStore, now: float) -> None:
    given = record("a", now)
    assert await store.create(given, None, now) is None
    await store.create(record("empty", now, head=b"", trunk=b""), None, now)
    assert await store.load("a") == given
    assert await store.load("empty") == record("empty", now, head=b"", trunk=b"")
    assert await store.load("b") is None
    seen = await store.look("a")
    assert seen is not None
    assert replace(seen, head=given.head, trunk=given.trunk) == given
    assert await store.look("b") is None
    assert await store.count(now) == 2


async def a_trunk_grows_or_is_replaced(store: SessionStore, now: float) -> None:
    await store.create(record("a", now), None, now)
    trunk = record("a", now).trunk
    for version, kept in enumerate([True, True, False, True, False], start=1):
        before = trunk
        trunk = before + b"+%d\x00" % version if kept else b"%d" % version
        after = record("a", now, version=version + 1, trunk=trunk, head=b"%d" % version)
        await store.commit(after, version, len(before) if kept else 0, None)
        assert await store.load("a") == after


async def a_trunk_may_stay_or_end(store: SessionStore, now: float) -> None:
    first = record("a", now)
    await store.create(first, None, now)
    await store.commit(replace(first, version=2), 1, len(first.trunk), None)
    assert await store.load("a") == replace(first, version=2)
    await store.commit(replace(first, version=3, trunk=b""), 2, 0, None)
    assert await store.load("a") == replace(first, version=3, trunk=b"")


async def one_of_two_changes_of_a_version_wins(store: SessionStore, now: float) -> None:
    await store.create(record("a", now), None, now)
    length = len(record("a", now).trunk)
    changes = [
        store.commit(record("a", now, version=2, head=b"%d" % i), 1, length, None) for i in range(8)
    ]
    outcomes = await asyncio.gather(*changes, return_exceptions=True)
    assert [type(o) for o in outcomes if o is not None] == [Changed] * 7
    winner = outcomes.index(None)
    assert await store.load("a") == record("a", now, version=2, head=b"%d" % winner)


async def what_is_not_there_cannot_be_changed(store: SessionStore, now: float) -> None:
    with pytest.raises(Changed):
        await store.commit(record("a", now, version=2), 1, 0, None)
    with pytest.raises(Changed):
        await store.delete("a", 1, None)
    await store.touch(record("a", now))
    assert await store.load("a") is None


async def what_is_deleted_is_gone(store: SessionStore, now: float) -> None:
    await store.create(record("a", now), None, now)
    with pytest.raises(Changed):
        await store.delete("a", 2, Reply("a", "gone", now + 9, b"answer"))
    assert await store.reply("a", "gone", now) is None
    await store.delete("a", 1, Reply("a", "gone", now + 9, b"answer"))
    assert await store.load("a") is None
    assert await store.reply("a", "gone", now) == b"answer"
    assert await store.count(now) == 0
    assert await store.page("me", "", 9, now) == []
    # Its trunk does not come back with another record of this name.
    await store.create(record("a", now, trunk=b""), None, now)
    assert await store.load("a") == record("a", now, trunk=b"")


async def a_reply_is_given_once(store: SessionStore, now: float) -> None:
    """The first of several records with one reply is kept, with the reply; the others are not."""
    outcomes = await asyncio.gather(
        *(
            store.create(record(f"r{i}", now), Reply("name", "name", now + 5, b"%d" % i), now)
            for i in range(6)
        )
    )
    (winner,) = [i for i, outcome in enumerate(outcomes) if outcome is None]
    assert [o for o in outcomes if o is not None] == [b"%d" % winner] * 5
    assert [one.id for one in await store.page("me", "", 9, now)] == [f"r{winner}"]
    assert await store.reply("name", "name", now) == b"%d" % winner
    assert await store.reply("another", "another", now) is None


async def replies_are_kept_with_changes(store: SessionStore, now: float) -> None:
    """All of them, and none of a change that did not happen."""
    first = record("a", now)
    await store.create(first, None, now)
    for version in (2, 3, 4):
        reply = Reply("a", f"r{version}", now + 100, b"%d" % version)
        changed = replace(first, version=version)
        await store.commit(changed, version - 1, len(first.trunk), reply)
    with pytest.raises(Changed):
        await store.commit(first, 1, len(first.trunk), Reply("a", "not", now + 100, b"x"))
    assert [await store.reply("a", f"r{v}", now) for v in (2, 3, 4)] == [b"2", b"3", b"4"]
    assert await store.reply("a", "not", now) is None
    # By itself, too, and once.
    assert await store.keep(Reply("a", "alone", now + 100, b"5"), now) is None
    assert await store.keep(Reply("a", "alone", now + 100, b"6"), now) == b"5"
    assert await store.reply("a", "alone", now) == b"5"


async def the_newest_replies_stay(store: SessionStore, now: float) -> None:
    first = record("a", now)
    await store.create(first, None, now)
    await store.create(record("b", now), Reply("b", "other", now + 9, b"x"), now)
    for n in range(MOST_REPLIES + 4):
        reply = Reply("a", f"r{n}", now + 100, b"%d" % n)
        await store.commit(replace(first, version=n + 2), n + 1, len(first.trunk), reply)
    found = [await store.reply("a", f"r{n}", now) for n in range(MOST_REPLIES + 4)]
    assert found == [None] * 4 + [b"%d" % n for n in range(4, MOST_REPLIES + 4)]
    assert await store.reply("b", "other", now) == b"x"


async def replies_outlive_their_record(store: SessionStore, now: float) -> None:
    first = record("a", now, expires_at=now + 10)
    await store.create(first, None, now)
    for name, ends in (("early", now + 10), ("late", now + 60)):
        await store.keep(Reply("a", name, ends, name.encode()), now)
    # As long as it lives at least.
    await store.prolong("a", now + 40)
    await store.sweep(now + 20)
    assert await store.reply("a", "early", now + 20) == b"early"
    await store.delete("a", 1, Reply("a", "end", now + 50, b"end"))
    await store.sweep(now + 30)
    assert await store.reply("a", "late", now + 30) == b"late"
    assert await store.reply("a", "end", now + 30) == b"end"
    await store.sweep(now + 61)
    assert [await store.reply("a", n, now + 61) for n in ("early", "late", "end")] == [None] * 3


async def prolonging_never_shortens(store: SessionStore, now: float) -> None:
    first = record("a", now)
    await store.create(first, None, now)
    await store.prolong("a", now + 150)
    await store.prolong("a", now + 120)
    await store.prolong("nothing", now + 120)
    assert await store.load("a") == replace(first, expires_at=now + 150)
    assert await store.load("nothing") is None
    await store.sweep(now + 151)
    await store.prolong("a", now + 500)
    ended = await store.look("a")
    assert ended is not None
    assert (ended.expires_at, ended.meta) == (now + 150, b"")


async def a_store_is_well(store: SessionStore, now: float) -> None:
    await store.check()
    assert await store.count(now) == 0


async def pages_are_an_owners_in_order(store: SessionStore, now: float) -> None:
    for i in (3, 1, 4, 0, 2):
        await store.create(record(f"m{i}", now), None, now)
    await store.create(record("m5", now, owner="you"), None, now)
    await store.create(record("m6", now, expires_at=now - 1), None, now)

    async def ids(owner: str, after: str, limit: int) -> list[str]:
        return [one.id for one in await store.page(owner, after, limit, now)]

    assert await ids("me", "", 3) == ["m0", "m1", "m2"]
    assert await ids("me", "m2", 9) == ["m3", "m4"]
    assert await ids("you", "", 9) == ["m5"]
    assert await ids("nobody", "", 9) == []
    (first,) = await store.page("me", "", 1, now)
    assert (first.version, first.expires_at, first.meta) == (1, now + 100.0, b'{"a":1}')


async def touching_lets_a_record_live(store: SessionStore, now: float) -> None:
    await store.create(record("a", now, expires_at=now + 10), None, now)
    await store.create(record("b", now, expires_at=now + 10), None, now)
    touched = record("a", now, expires_at=now + 50, meta=b'{"a":2}')
    await store.touch(touched)
    await store.touch(record("a", now, version=2, expires_at=now + 90))
    await store.sweep(now + 20)
    assert await store.load("a") == touched
    dead = await store.load("b")
    assert dead is not None
    assert (dead.owner, dead.expires_at, dead.head, dead.trunk) == ("me", now + 10, b"", b"")
    assert await store.count(now + 20) == 1


async def what_expired_is_known_for_a_day(store: SessionStore, now: float) -> None:
    await store.create(record("a", now, expires_at=now + 10), Reply("r", "r", now + 10, b"x"), now)
    await store.sweep(now + 11)
    assert await store.load("a") is not None
    assert await store.reply("r", "r", now + 11) is None
    with pytest.raises(Changed):
        await store.commit(record("a", now, version=2), 1, 0, None)
    with pytest.raises(Changed):
        await store.delete("a", 1, None)
    await store.touch(record("a", now))
    assert (await store.load("a")).expires_at == now + 10  # type: ignore[union-attr]
    # A name can be used again when its reply has expired.
    assert await store.create(record("c", now), Reply("r", "r", now + 90, b"y"), now + 11) is None


async def a_day_later_it_is_unknown(store: SessionStore, now: float) -> None:
    await store.create(record("a", now, expires_at=now + 10), None, now)
    await store.sweep(now + 11)
    await store.sweep(now + 9 + TOMBSTONE_SECONDS)
    assert await store.load("a") is not None
    await store.sweep(now + 10 + TOMBSTONE_SECONDS)
    assert await store.load("a") is None


async def only_so_many_live(store: SessionStore, now: float) -> None:
    """The store has room for eight."""
    for i in range(8):
        await store.create(record(f"a{i}", now), None, now)
    with pytest.raises(Full):
        await store.create(record("b", now), None, now)
    assert await store.load("b") is None
    await store.delete("a0", 1, None)
    await store.create(record("b", now), None, now)
    await store.commit(record("b", now, version=2), 1, 0, None)
    with pytest.raises(Full):
        await store.create(record("c", now), None, now)
    # What expires makes room, as soon as it is swept.
    await store.commit(record("b", now, version=3, expires_at=now + 1), 2, 0, None)
    await store.sweep(now + 2)
    await store.create(record("c", now + 2), None, now + 2)


LAWS = [
    keeps_what_it_is_given,
    a_trunk_grows_or_is_replaced,
    a_trunk_may_stay_or_end,
    one_of_two_changes_of_a_version_wins,
    what_is_not_there_cannot_be_changed,
    what_is_deleted_is_gone,
    a_reply_is_given_once,
    replies_are_kept_with_changes,
    the_newest_replies_stay,
    replies_outlive_their_record,
    prolonging_never_shortens,
    a_store_is_well,
    pages_are_an_owners_in_order,
    touching_lets_a_record_live,
    what_expired_is_known_for_a_day,
    a_day_later_it_is_unknown,
    only_so_many_live,
]
