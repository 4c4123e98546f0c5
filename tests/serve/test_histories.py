"""Live histories, on real files and against a real server: order, bounds, strange ids, two writers, kills, and a server that goes away."""

from __future__ import annotations

import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from isthmus.errors import ConfigError, HistoryError
from isthmus.serve.histories import LARGEST, Event, Histories, packed
from isthmus.serve.redis_histories import RedisHistories
from isthmus.serve.sqlite_histories import SqliteHistories

needs_redis = pytest.mark.skipif(shutil.which("redis-server") is None, reason="needs redis-server (Debian: apt-get install redis-server)")


class Server:
    """A Redis server of our own, which writes every command down before it answers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        always = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), *always]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                with RedisHistories(self.url) as store:
                    store.check()
                return
            except HistoryError:
                time.sleep(0.05)
        raise AssertionError("redis-server does not answer")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if shutil.which("redis-server") is None:
        pytest.skip("needs redis-server (Debian: apt-get install redis-server)")
    found = Server(tmp_path_factory.mktemp("redis"))
    yield found
    found.kill()


@pytest.fixture(params=["sqlite", "redis"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Histories]]:
    """Opens stores that are all the same one; each test has its own."""
    with ExitStack() as opened:
        if request.param == "sqlite":
            yield lambda **args: opened.enter_context(SqliteHistories(tmp_path / "events.db", **args))
        else:
            url, prefix = request.getfixturevalue("server").url, f"t{time.monotonic_ns()}"
            yield lambda **args: opened.enter_context(RedisHistories(url, prefix=prefix, **args))


def items(store: Histories, user: str = "u", domain: str = "d") -> list[str]:
    return [e.item for e in store.of([user], [domain])[0].get(domain, [])]


def test_events_come_back_in_order_of_time_with_all_that_they_hold(make: Callable[..., Histories]) -> None:
    store = make()
    told = [
        Event("u", "games", "b", 20, "buy", 4.5),
        Event("u", "games", "a", 10),
        Event("u", "toys", "c", 15, None, 0.0),
        Event("v", "toys", "d", -3, "view"),
    ]
    store.append(told[:2])
    store.append(told[2:])
    assert store.of(["u", "v", "w"], ["games", "toys", "books"]) == [
        {"games": [told[1], told[0]], "toys": [told[2]]},
        {"toys": [told[3]]},
        {},
    ]
    assert make().of(["u"], ["toys"]) == [{"toys": [told[2]]}], "another connection sees them"
    store.append([])
    assert store.of([], ["games"]) == []
    store.check()
    store.forget("u", ["games"])
    store.forget("u", [])
    assert store.of(["u"], ["games", "toys"]) == [{"toys": [told[2]]}]
    store.close()


def test_the_newest_stay_and_what_is_told_again_changes_nothing(make: Callable[..., Histories]) -> None:
    store = make(length=3)
    store.append([Event("u", "d", f"i{n}", n) for n in (5, 1, 4, 2, 3)])
    assert items(store) == ["i3", "i4", "i5"]
    store.append([Event("u", "d", "i4", 4), Event("u", "d", "late", 0)])
    assert items(store) == ["i3", "i4", "i5"]
    store.append([Event("u", "d", "i4", 4, "buy"), Event("u", "e", "other", 1)])
    one, two, last = ((e.item, e.behaviour) for e in store.of(["u"], ["d"])[0]["d"])
    assert ({one, two}, last) == ({("i4", None), ("i4", "buy")}, ("i5", None))
    assert items(store, domain="e") == ["other"]


@pytest.mark.parametrize("moment", [0, 2**53 + 1, LARGEST, -LARGEST - 1])
def test_moments_next_to_each_other_are_told_apart(make: Callable[..., Histories], moment: int) -> None:
    store, near = make(), [m for m in (moment - 1, moment, moment + 1) if -LARGEST - 1 <= m <= LARGEST]
    store.append([Event("u", "d", f"{m}", m) for m in reversed(near)])
    assert [e.time for e in store.of(["u"], ["d"])[0]["d"]] == near


EVENTS = st.builds(
    Event,
    user=st.sampled_from(["a", "b"]),
    domain=st.sampled_from(["x", "y"]),
    item=st.sampled_from(["i", "j", "k", "ä"]),
    time=st.integers(0, 4),
    behaviour=st.sampled_from([None, "buy"]),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(told=st.lists(st.lists(EVENTS, max_size=6), max_size=6), length=st.integers(1, 4))
def test_against_a_list(make: Callable[..., Histories], told: list[list[Event]], length: int) -> None:
    store = make(length=length)
    by_text = isinstance(store, RedisHistories)
    known: dict[tuple[str, str], list[tuple[Any, Event]]] = {}
    for user in "ab":
        store.forget(user, ["x", "y"])
    for events in told:
        store.append(events)
        for event in events:
            own = known.setdefault((event.user, event.domain), [])
            if event not in [e for _, e in own]:
                told_as = packed(event) if by_text else max((n for (_, n), _ in own), default=0) + 1
                own.append(((event.time, told_as), event))
        known = {pair: sorted(own, key=lambda e: e[0])[-length:] for pair, own in known.items()}
        found = store.of(["a", "b"], ["x", "y"])
        assert {(u, d): e for u, of in zip("ab", found, strict=True) for d, e in of.items()} == {
            pair: [e for _, e in own] for pair, own in known.items() if own
        }
    store.close()


STRANGE = [
    "",
    " ",
    "a:b",
    "{a}",
    "}",
    "%7B",
    "'; DROP TABLE event; --",
    "../../etc/passwd",
    "\0",
    "e\u0301",
    "é",
    "日本",
    "🦊",
    "x" * 5000,
    "*",
]


def test_strange_ids_are_ids(make: Callable[..., Histories]) -> None:
    store = make()
    told = [Event(user, domain, item, 1) for user in STRANGE for domain in STRANGE[:8] for item in (user, domain)]
    store.append(told)
    for user, of in zip(STRANGE, store.of(STRANGE, STRANGE[:8]), strict=True):
        assert set(of) == set(STRANGE[:8])
        assert all({e.item for e in events} == {user, domain} for domain, events in of.items())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"user": "\ud800"}, "Unicode text"),
        ({"item": "a\udfffb"}, "Unicode text"),
        ({"behaviour": "\udc00"}, "Unicode text"),
        ({"time": 2**63}, "a 64-bit integer"),
        ({"time": -(2**63) - 1}, "a 64-bit integer"),
        ({"label": float("nan")}, "a finite number"),
        ({"label": float("inf")}, "a finite number"),
    ],
)
def test_what_cannot_be_kept_is_refused(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Event(**{"user": "u", "domain": "d", "item": "i", "time": 0, **args})


def test_questions_that_no_store_can_ask_are_refused(make: Callable[..., Histories]) -> None:
    store = make()
    for question in (lambda: store.of(["\ud800"], ["d"]), lambda: store.of(["u"], ["\ud800"]), lambda: store.forget("\ud800", ["d"])):
        with pytest.raises(ConfigError, match="Unicode text"):
            question()
    with pytest.raises(ConfigError, match="1 or more events"):
        make(length=0)


def test_threads_share_a_store(make: Callable[..., Histories]) -> None:
    store, failed = make(length=1000, patience=30.0), list[BaseException]()

    def work(name: int) -> None:
        try:
            for n in range(40):
                store.append([Event("u", "d", f"{name}-{n}", n)])
                assert f"{name}-{n}" in items(store)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(items(store)) == 160
    store.close()


WRITER = """
import sys
from isthmus.serve.histories import Event
from isthmus.serve.redis_histories import RedisHistories
from isthmus.serve.sqlite_histories import SqliteHistories
name, kind, where = sys.argv[1:]
store = SqliteHistories(where, length=100_000, patience=30) if kind == "sqlite" else RedisHistories(where, length=100_000, patience=30)
for n in range(100_000):
    store.append([Event(name, "d", str(n), n)])
    print(n, flush=True)
"""


def killed(names: list[str], kind: str, where: str, at_least: int) -> dict[str, int]:
    """Writers side by side, killed in the middle of their work once each has told of so many: how far each has told that it came."""
    command = [sys.executable, "-c", WRITER]
    writers = {name: subprocess.Popen([*command, name, kind, where], stdout=subprocess.PIPE, text=True) for name in names}
    told = {}
    for writer in writers.values():
        assert writer.stdout is not None
        for _ in range(at_least):
            assert writer.stdout.readline() != "", "a writer ended by itself"
    for writer in writers.values():
        writer.send_signal(signal.SIGKILL)
    for name, writer in writers.items():
        assert writer.stdout is not None
        told[name] = len(writer.stdout.read().splitlines()) + at_least
        writer.wait()
        writer.stdout.close()
    return told


def test_killed_writers_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    for at_least in (5, 40):
        told = killed(["a", "b"], "sqlite", str(path), at_least)
        store = SqliteHistories(path, length=100_000)
        for name, count in told.items():
            assert count >= at_least
            found = items(store, name)
            assert found == [str(n) for n in range(len(found))]
            assert len(found) >= count
        store.close()


@needs_redis
def test_a_killed_server_loses_nothing_that_was_acknowledged_and_comes_back(tmp_path: Path) -> None:
    own = Server(tmp_path)
    try:
        told = killed(["a"], "redis", own.url, 20)
        with RedisHistories(own.url, length=100_000) as store:
            own.kill()
            began = time.monotonic()
            for question in (lambda: store.of(["a"], ["d"]), lambda: store.append([Event("a", "d", "lost", 1)]), store.check):
                with pytest.raises(HistoryError, match="see that the server runs"):
                    question()
            assert time.monotonic() - began < 10
            own.start()
            found = items(store, "a")
        assert len(found) >= told["a"] >= 20
        assert "lost" not in found
    finally:
        own.kill()


@needs_redis
def test_histories_that_nobody_adds_to_are_forgotten_when_asked(server: Server) -> None:
    with RedisHistories(server.url, prefix="ttl", keep=100) as store:
        store.append([Event("u", "d", "i", 1)])
        assert 0 < store._client.ttl(store._key("u", "d")) <= 100
    for args, message in (({"keep": 0}, "1 or more seconds"), ({"url": "http://localhost"}, "redis://host")):
        with pytest.raises(ConfigError, match=message):
            RedisHistories(**{"url": server.url, **args})


def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE mine (x)")
        connection.execute("INSERT INTO mine VALUES (1)")
    connection.close()
    before = other.read_bytes()
    with pytest.raises(HistoryError, match=r"holds tables \['mine'\]"):
        SqliteHistories(other)
    assert other.read_bytes() == before
    (tmp_path / "noise.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(HistoryError, match="not a database"):
        SqliteHistories(tmp_path / "noise.db")
    with pytest.raises(HistoryError, match="a file that can be read and written"):
        SqliteHistories(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(HistoryError, match="a file that can be read and written"):
        SqliteHistories(tmp_path / "file" / "events.db")


def test_what_another_program_holds_is_waited_for_and_then_told(tmp_path: Path) -> None:
    store = SqliteHistories(tmp_path / "events.db", patience=0.1)
    other = sqlite3.connect(tmp_path / "events.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(HistoryError, match="locked"):
        store.append([Event("u", "d", "i", 1)])
    assert items(store) == [], "reading goes on"
    other.execute("ROLLBACK")
    other.close()
    store.append([Event("u", "d", "i", 1)])
    assert items(store) == ["i"]
    store.close()
