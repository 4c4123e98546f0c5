"""A service's answers beside direct calls: retrieve 500 of 300,000 items and rank them, 50 requests in flight.

    python benchmarks/serve.py [--items 300000] [--seconds 60] [--inflight 50] [--folder benchmarks/.serve]

Needs wrk (Debian: apt-get install wrk), which sends the requests from a process of its own.  The first run makes a world of two
domains, trains a two-tower retriever and an MMoE for one epoch each and exports their bundle into the folder; later runs use it again.

Prints, in one run on one machine: requests a second through HTTP and by direct calls in one process (the same questions in batches,
and one by one), median and 99th percentile, errors, a single client's median, rank of 500 candidates against 500 rows, and the
service's memory before and after.  Fails where a bar is missed: no error, throughput from 0.7 of direct batches, a single
client's median under 10 ms, and ranking 500 candidates at least 20 times as fast as 500 questions.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl

from isthmus.data import split
from isthmus.data.dataset import Dataset
from isthmus.data.encode import encode
from isthmus.data.events import read_events
from isthmus.export.bundle import export
from isthmus.fit import fit
from isthmus.how import How
from isthmus.run import build
from isthmus.serve.asks import Ask
from isthmus.serve.bundle import Bundle
from isthmus.serve.engine import Engine
from isthmus.task import get_task

USERS, EVENTS, GROUPS, WORKERS, BATCH = 50_000, 1_000_000, 300, 2, 32
BARS = {"share": 0.7, "single_ms": 10.0, "rank": 20.0}
DOMAIN = "first"


def bundle(folder: Path, items: int) -> Path:
    """The bundle, made on first use: users choose among the items of a few groups."""
    out = folder / f"bundle-{items}"
    if out.exists():
        return out
    rng = np.random.default_rng(0)
    user = rng.integers(0, USERS, EVENTS)
    group = (user * 7 + rng.integers(0, 4, EVENTS)) % GROUPS
    within = np.minimum(rng.exponential(items / GROUPS / 4, EVENTS), items / GROUPS - 1).astype(np.int64)
    frame = pl.DataFrame({"user": user, "item": group * (items // GROUPS) + within, "time": np.sort(rng.integers(0, 10**7, EVENTS))})
    frame = frame.with_columns(domain=pl.Series(rng.choice([DOMAIN, "second"], EVENTS, p=[0.8, 0.2])))
    shows = {name: np.arange(items) for name in (DOMAIN, "second")}
    events = read_events(frame, user="user", item="item", domain="domain", time="time", shows=shows)
    shutil.rmtree(folder / "data", ignore_errors=True)
    dataset: Dataset = encode(events, split.global_time(events, valid=0.01, test=0.01), folder / "data")
    task, how = get_task("retrieval"), {"epochs": 1, "device": "cpu", "eval_queries": 2, "history_length": 20}
    towers = fit(build("two_tower", dataset.schema, {"dim": 64}, seed=0), dataset, task, How(**how, batch_size=4096))
    ranker = fit(build("mmoe", dataset.schema, {}, seed=0), dataset, task, How(**how, batch_size=4096, negatives=1))
    return export([towers, ranker], dataset, out, name="benchmark", measured=False, say=print)


def direct(engine: Engine, asks: list[Ask], batch: int, seconds: float) -> float:
    """Questions a second by direct calls in this process, from as many threads as the service has."""
    done, deadline = [0] * WORKERS, time.perf_counter() + seconds

    def work(n: int) -> None:
        place = n * batch
        while time.perf_counter() < deadline:
            engine.recommend([asks[(place + i) % len(asks)] for i in range(batch)], DOMAIN)
            place, done[n] = place + WORKERS * batch, done[n] + batch

    began = time.perf_counter()
    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(work, range(WORKERS)))
    return sum(done) / (time.perf_counter() - began)


def wrk(url: str, users: list[int], inflight: int, seconds: float) -> dict[str, float]:
    """Requests a second, milliseconds at percentiles, and errors."""
    script = f"""
local users = {{{",".join(map(str, users))}}}
local n = 0
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
request = function()
  n = n % #users + 1
  return wrk.format(nil, "/v1/{DOMAIN}/recommend", nil, '{{"user":' .. users[n] .. ',"k":10}}')
end
"""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        command = ["wrk", "-t1", f"-c{inflight}", f"-d{int(seconds)}s", "--timeout", "10s", "--latency", "-s", file.name, url]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    unit = {"us": 1e-3, "ms": 1.0, "s": 1e3}
    found = {f"p{p}": float(v) * unit[u] for p, v, u in re.findall(r"^\s+(50|99)%\s+([\d.]+)(us|ms|s)$", text, re.MULTILINE)}
    found["rate"] = float(re.findall(r"Requests/sec:\s+([\d.]+)", text)[0])
    found["requests"] = float(re.findall(r"(\d+) requests in", text)[0])
    failed = re.findall(r"Non-2xx or 3xx responses: (\d+)", text)
    sockets = re.findall(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    found["errors"] = float(sum(map(int, failed)) + sum(int(n) for one in sockets for n in one))
    return found


def ranking(engine: Engine, users: list[int]) -> tuple[float, float, float]:
    """Seconds to rank 500 candidates: in one question, as 500 rows of one call, as 500 questions."""
    rng = np.random.default_rng(1)
    items = engine.bundle.items.names(rng.choice(engine.bundle.catalogues[0].item, 500, replace=False))
    user = users[0]

    def best(work: Callable[[], object], rounds: int) -> float:
        seconds = []
        for _ in range(rounds):
            began = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - began)
        return min(seconds)

    rows = [Ask(user, candidates=[item]) for item in items]
    one = best(lambda: engine.recommend([Ask(user, candidates=items, k=500)], DOMAIN), 30)
    return one, best(lambda: engine.recommend(rows, DOMAIN), 5), best(lambda: [engine.recommend([row], DOMAIN) for row in rows], 3)


def memory(pid: int) -> float:
    """Resident MiB."""
    return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0]) / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=300_000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--inflight", type=int, default=50)
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/.serve"))
    given = parser.parse_args()
    if shutil.which("wrk") is None:
        print("needs wrk (Debian: apt-get install wrk)")
        return 2
    path = bundle(given.folder, given.items)
    loaded = Bundle.load(path)
    engine = Engine(loaded)
    users = loaded.users.ids.sample(2000, seed=0).to_list()
    asks = [Ask(user) for user in users]
    print(f"{given.items:,} items; {loaded.stages[0].indexes[0].note}" if loaded.stages[0].indexes else "")
    engine.recommend(asks[:BATCH], DOMAIN)
    batches, single = direct(engine, asks, BATCH, given.seconds / 4), direct(engine, asks, 1, given.seconds / 4)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--port", str(port), "--histories", str(given.folder / "events.db"), "--workers", str(WORKERS), "--batch", str(BATCH)]
    service = subprocess.Popen([sys.executable, "-m", "isthmus.cli", "serve", str(path), *options], stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        ready(url)
        wrk(url, users, given.inflight, 3)
        before = memory(service.pid)
        loaded_run = wrk(url, users, given.inflight, given.seconds)
        after = memory(service.pid)
        alone = wrk(url, users, 1, max(5.0, given.seconds / 6))
        again = direct(engine, asks, BATCH, given.seconds / 4)
    finally:
        service.terminate()
        service.wait()
    one, rows, questions = ranking(engine, users)
    base = statistics.mean([batches, again])
    facts = {
        "http": loaded_run,
        "direct_batches": base,
        "direct_single": single,
        "share": loaded_run["rate"] / base,
        "single_ms": alone["p50"],
        "memory_mib": [before, after],
        "rank_500_ms": one * 1e3,
        "rank_rows": rows / one,
        "rank_questions": questions / one,
    }
    print(f"direct calls, batches of {BATCH}: {base:,.0f} a second; one by one: {single:,.0f}")
    run = loaded_run
    share = f"{run['rate']:,.0f} a second ({facts['share']:.2f} of direct batches)"
    print(f"HTTP, {given.inflight} in flight: {share}, {run['requests']:,.0f} requests, {run['errors']:.0f} errors,")
    print(f"      p50 {run['p50']:.1f} ms, p99 {run['p99']:.1f} ms; memory {before:,.0f} -> {after:,.0f} MiB")
    print(f"HTTP, one client: p50 {alone['p50']:.1f} ms, p99 {alone['p99']:.1f} ms")
    times = f"as 500 rows of one call {rows / one:.1f} times, as 500 questions {questions / one:.1f} times as long"
    print(f"rank 500 candidates: {one * 1e3:.1f} ms; {times}")
    (given.folder / "serve.json").write_text(json.dumps(facts, indent=1))
    met = (
        loaded_run["errors"] == 0
        and facts["share"] >= BARS["share"]
        and alone["p50"] < BARS["single_ms"]
        and questions / one >= BARS["rank"]
    )
    print("bars met" if met else f"a bar is missed: {BARS}, 0 errors")
    return 0 if met else 1


def ready(url: str) -> None:
    """Waits until the service answers."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=1):
                return
        except OSError:
            threading.Event().wait(0.2)
    raise SystemExit("the service does not answer")


if __name__ == "__main__":
    sys.exit(main())
