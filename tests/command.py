"""``isthmus ...`` in a process of its own, forked from one that has loaded the libraries: a command takes its own time alone."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest.mock import patch

LOADED = ["torch._dynamo", "isthmus.cli", "isthmus.experiment", "isthmus.report", "isthmus.score", "isthmus.tune", "isthmus.models"]
OWN = {"OMP_NUM_THREADS": "1", "COLUMNS": "160", "NO_COLOR": "1"}
_processes = multiprocessing.get_context("forkserver")


def isthmus(*arguments: object, cwd: Path | None = None, ok: int = 0, environment: dict[str, str] | None = None) -> str:
    """Runs the command; returns what it printed (errors too) and checks its exit code."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process: Any = _processes.Process(
            target=_run, args=([str(one) for one in arguments], cwd or Path.cwd(), OWN | (environment or {}), out, err)
        )
        with patch.dict(os.environ, OWN):
            _processes.set_forkserver_preload(LOADED)
            forkserver.ensure_running()
            process.start()
        process.join(300)
        if process.is_alive():
            process.kill()
        said, complained = out.read_text(), err.read_text()
    assert process.exitcode == ok, said + complained
    assert "Traceback" not in complained
    return said + complained


def _run(arguments: list[str], cwd: Path, environment: dict[str, str], out: Path, err: Path) -> None:
    """In the new process."""
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, encoding="utf-8") for number in (1, 2))
    os.chdir(cwd)
    os.environ.update(environment)
    sys.argv = ["isthmus", *arguments]
    from isthmus.cli import main

    main()
