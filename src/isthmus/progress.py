"""What a person sees and interrupts while a model trains."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from isthmus.errors import ConfigError


class Bar:
    """One line: stage, epoch, share done, rows per second, time left.  Silent unless standard error is a terminal."""

    def __init__(self, shown: bool) -> None:
        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        self.shown = shown and console.is_terminal
        self.progress = Progress(*columns, console=console, transient=True, disable=not self.shown)
        self.task = self.progress.add_task("", total=None, rate="")

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def begin(self, text: str, total: int, done: int) -> None:
        """A new epoch of ``total`` steps, ``done`` of them done before."""
        self.progress.reset(self.task, description=text, total=total, completed=done, rate="")

    def step(self, rows: int, seconds: float) -> None:
        """One more step; rows and seconds of the epoch so far."""
        if self.shown:
            self.progress.update(self.task, advance=1, rate=f"{rows / max(seconds, 1e-9):,.0f} rows/s")

    def say(self, text: str) -> None:
        """A line that stays."""
        if self.shown:
            self.progress.console.print(text, highlight=False)


class Board:
    """TensorBoard events, in the run's folder ``tensorboard``.

    Args:
        folder: of the run; None: nothing is written.
        done: epochs written before; later ones of an interrupted run are hidden.

    Raises:
        ConfigError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path | None, done: int) -> None:
        self.writer = None
        if folder is None:
            return
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            raise ConfigError("tensorboard=True, but TensorBoard is not installed", "it", "pip install 'isthmus[tensorboard]'") from error
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)

    def write(self, entry: dict[str, Any], number: int) -> None:
        """One entry of the log, the ``number``-th."""
        if self.writer is None:
            return
        named = {f"loss/{name}": value for name, value in entry["losses"].items()}
        named |= {f"{metric}/{domain}": value for metric, values in entry["metrics"].items() for domain, value in values.items()}
        for name, value in named.items():
            self.writer.add_scalar(name, value, number)
        self.writer.flush()


class Hold:
    """``with hold:`` puts Ctrl-C off until the block's end; outside such blocks it comes at once.

    A second Ctrl-C does not wait, and sets ``forced``: what the block was changing is then half changed.
    """

    def __init__(self) -> None:
        self.held = self.asked = self.forced = False

    def __enter__(self) -> None:
        self.held = True

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.held = False
        if self.asked and kind is None:
            self.asked = False
            raise KeyboardInterrupt

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        """What to do at Ctrl-C."""
        self.forced = self.held and self.asked
        if self.held and not self.asked:
            self.asked = True
            return
        raise KeyboardInterrupt


@contextmanager
def holding() -> Iterator[Hold]:
    """A ``Hold`` that answers Ctrl-C while the block runs; in a thread other than the main one it never comes."""
    hold = Hold()
    if threading.current_thread() is not threading.main_thread():
        yield hold
        return
    before = signal.signal(signal.SIGINT, hold.interrupt)
    try:
        yield hold
    finally:
        signal.signal(signal.SIGINT, before)
