"""A service as a process of its own: killed, asked to stop, given new bundles under load, and its store taken away."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from isthmus.serve.sqlite_histories import SqliteHistories

USER = "u 3/'ü"
PATIENCE = 60.0


class Process:
    """``isthmus serve`` on a port of its own."""

    def __init__(self, *bundles: Path, histories: str = "none", watch: float = 0.0) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        options = ["--port", str(self.port), "--histories", histories, "--watch", str(watch)]
        command = [sys.executable, "-m", "isthmus.cli", "serve", *map(str, bundles), *options]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE)
        until(self._answers)

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.process.stderr and self.process.stderr.read().decode()
        try:
            return self.client.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def post(self, route: str, body: Any) -> httpx.Response:
        return self.client.post(route, json=body)

    def close(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()
        if self.process.stderr is not None:
            self.process.stderr.close()


@contextmanager
def serving(*bundles: Path, **options: Any) -> Iterator[Process]:
    process = Process(*bundles, **options)
    try:
        yield process
    finally:
        process.close()


def until(true: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_kill_9_during_writes_loses_no_event_that_was_acknowledged(alone, tmp_path: Path) -> None:
    path, acknowledged = tmp_path / "live.db", Counter[str]()
    for round_ in range(2):
        with serving(alone.path, histories=str(path)) as service:

            def write(user: str, url: str = service.url) -> None:
                with httpx.Client(base_url=url, timeout=PATIENCE) as client:
                    try:
                        while True:
                            n = acknowledged[user]
                            event = {"user": user, "domain": "large", "item": f"i{n % 60}", "time": n, "behaviour": "buy"}
                            assert client.post("/v1/events", json={"events": [event]}).status_code == 201
                            acknowledged[user] += 1
                    except httpx.TransportError:
                        return

            threads = [threading.Thread(target=write, args=(f"writer {n}",)) for n in range(3)]
            for thread in threads:
                thread.start()
            until(lambda: len(acknowledged) == 3 and min(acknowledged.values()) >= 10 * (round_ + 1))  # noqa: B023
            service.process.send_signal(signal.SIGKILL)
            for thread in threads:
                thread.join()
    with SqliteHistories(path, length=100_000) as store:
        for user, count in acknowledged.items():
            kept = [event.time for event in store.of([user], ["large"])[0]["large"]]
            assert kept[-min(count, 200) :] == sorted(kept)[-min(count, 200) :]
            assert kept[-1] >= count - 1


def test_asked_to_stop_it_answers_who_has_asked(chained) -> None:
    with serving(chained.path) as service:
        body = json.dumps({"user": USER, "k": 50})
        asked = [http.client.HTTPConnection("127.0.0.1", service.port, timeout=PATIENCE) for _ in range(8)]
        for one in asked:
            one.request("POST", "/v1/large/recommend", body, {"Content-Type": "application/json"})
        service.client.get("/healthz")  # asked later than all of them: when it is answered they have been read
        service.process.send_signal(signal.SIGTERM)
        assert [one.getresponse().status for one in asked] == [200] * 8
        for one in asked:
            one.close()
        assert service.process.wait(PATIENCE) in (0, -signal.SIGTERM)


def test_bundles_are_exchanged_under_load_without_a_failed_request(chained, alone, tmp_path: Path) -> None:
    place = tmp_path / "bundle"
    place.symlink_to(chained.path)
    with serving(place, watch=0.1) as service:
        answers, stop = Counter[str](), threading.Event()

        def ask() -> None:
            with httpx.Client(base_url=service.url, timeout=PATIENCE) as client:
                while not stop.is_set():
                    answer = client.post("/v1/large/recommend", json={"user": USER})
                    answers[answer.json()["bundle"].split("@")[0] if answer.status_code == 200 else str(answer.status_code)] += 1

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        half = tmp_path / "half"
        shutil.copytree(alone.path, half)
        (half / "0" / "model.safetensors").unlink()
        for source, name in ((alone.path, "alone"), (half, None), (chained.path, "chained")):
            (tmp_path / "next").symlink_to(source)
            (tmp_path / "next").replace(place)
            if name is None:
                until(lambda: service.client.get("/v1/domains").json()["bundles"][0]["refused"])
            else:
                until(lambda: service.client.get("/v1/domains").json()["bundles"][0]["bundle"].startswith(name))  # noqa: B023
            before = sum(answers.values())
            until(lambda: sum(answers.values()) > before + 10)  # noqa: B023
        stop.set()
        for thread in threads:
            thread.join()
        assert set(answers) == {"chained", "alone"}


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="needs redis-server (Debian: apt-get install redis-server)")
def test_redis_may_go_away_and_come_back(alone, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    always = ["--appendonly", "yes", "--appendfsync", "always", "--save", "", "--dir", str(tmp_path), "--bind", "127.0.0.1"]

    def redis() -> subprocess.Popen[bytes]:
        return subprocess.Popen(["redis-server", "--port", str(port), *always], stdout=subprocess.DEVNULL)

    server = redis()
    try:
        with serving(alone.path, histories=f"redis://127.0.0.1:{port}/0") as service:
            event = {"user": "new", "domain": "large", "item": "i1", "behaviour": "buy"}
            until(lambda: service.post("/v1/events", {"events": [event]}).status_code == 201)
            live = service.post("/v1/large/recommend", {"user": "new"})
            assert live.json()["basis"] == "history"
            server.kill()
            server.wait()
            away = service.post("/v1/large/recommend", {"user": "new"})
            assert (away.status_code, away.json()["basis"], away.json()["stale"]) == (200, "popular", True)
            assert "warning" in away.headers
            assert service.post("/v1/events", {"events": [event]}).status_code == 503
            server = redis()
            until(lambda: not service.post("/v1/large/recommend", {"user": "new"}).json()["stale"])
            assert service.post("/v1/large/recommend", {"user": "new"}).json()["items"] == live.json()["items"]
    finally:
        server.kill()
        server.wait()


def test_what_cannot_be_served_is_told_in_a_line(alone, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_text(json.dumps({"format": 7}))
    for arguments, message in (
        ([str(tmp_path / "none")], "is missing"),
        ([str(tmp_path / "bundle")], "a bundle of format 2"),
        ([str(alone.path), "--histories", "http://localhost"], "redis://host"),
        ([str(alone.path), "--share", "1", "--share", "2"], "as many positive shares"),
    ):
        command = [sys.executable, "-m", "isthmus.cli", "serve", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, cwd=tmp_path, check=False)
        assert done.returncode != 0
        assert message in done.stderr
        assert "Traceback" not in done.stderr
