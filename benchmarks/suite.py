"""Benchmarks one after the other, kept in one place.

    python benchmarks/suite.py                       # all of them
    python benchmarks/suite.py multi_domain ranks    # some
    python benchmarks/suite.py --out benchmarks/.results

Writes ``results.json`` (by benchmark: seconds, exit code, and the numbers of those that print JSON) and ``results.md`` (what each
printed, on which machine) into the folder.  Each runs alone; close what else uses the processor.  Fails when one misses its bar.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ALL = ("prepare", "loader", "domains", "retrieval", "ranking", "measure", "ranks", "two_tower", "din", "sasrec", "multi_domain", "serve")


def numbers(said: str) -> Any:
    """The last line, where it is JSON."""
    try:
        return json.loads(said.strip().splitlines()[-1])
    except (IndexError, ValueError):
        return None


def run(name: str) -> dict[str, Any]:
    """One benchmark, its lines shown as they come."""
    print(f"\n== {name}", flush=True)
    begin, lines = time.perf_counter(), list[str]()
    command = [sys.executable, "-u", str(HERE / f"{name}.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    said = "".join(lines)
    return {"rc": process.returncode, "seconds": round(time.perf_counter() - begin), "numbers": numbers(said), "said": said}


def machine() -> str:
    """What it ran on, in a line."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("isthmus", "torch", "numpy", "polars"))
    return f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, {versions}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name", help=f"some of {', '.join(ALL)}; default: all")
    parser.add_argument("--out", type=Path, default=HERE / ".results")
    given = parser.parse_args()
    if wrong := [name for name in given.names if name not in ALL]:
        parser.error(f"no benchmark {wrong[0]!r}: one of {', '.join(ALL)}")
    found = {name: run(name) for name in given.names or ALL}
    given.out.mkdir(parents=True, exist_ok=True)
    plain = {name: {key: value for key, value in one.items() if key != "said"} for name, one in found.items()}
    (given.out / "results.json").write_text(json.dumps({"machine": machine(), "benchmarks": plain}, indent=1) + "\n")
    table = ["| benchmark | seconds | |", "|---|---|---|"]
    table += [f"| {name} | {one['seconds']} | {'fine' if not one['rc'] else 'missed its bar, or failed'} |" for name, one in found.items()]
    texts = [f"## {name}\n\n```\n{one['said'].strip()}\n```" for name, one in found.items()]
    (given.out / "results.md").write_text("\n".join([f"# Benchmarks\n\n{machine()}\n", *table, "", *texts]) + "\n")
    print(f"\n{given.out / 'results.md'}")
    if missed := [name for name, one in found.items() if one["rc"]]:
        sys.exit(f"missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
