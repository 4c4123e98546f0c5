"""``SqliteHistories``: live events in a file."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from isthmus.errors import HistoryError
from isthmus.serve.histories import LENGTH, Event, Histories, check_texts, packed, unpacked

VERSION = 1  # of the file's tables


class SqliteHistories(Histories):
    """A file, for one machine; several processes may share it.

    It is written ahead (WAL) and synced before ``append`` returns, so that neither a killed process nor a power cut loses an event.

    Args:
        path: of the file; made when it is missing.
        length: see ``Histories``.
        patience: seconds to wait for another process's writing.

    Raises:
        HistoryError: not a file of this kind, or one that cannot be opened.
    """

    kind: ClassVar[str] = "sqlite"

    def __init__(self, path: str | Path, length: int = LENGTH, patience: float = 5.0) -> None:
        super().__init__(length)
        self.path, self.patience = Path(path), patience
        self._own, self._open, self._lock = threading.local(), list[sqlite3.Connection](), threading.Lock()
        with self._errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._make(self._connection)

    def append(self, events: Sequence[Event]) -> None:
        """One transaction."""
        if not events:
            return
        rows = [(e.user, e.domain, e.time, packed(e), e.user, e.domain) for e in events]
        touched = sorted({(e.user, e.domain) for e in events})
        with self._errors(), self._writing() as connection:
            connection.executemany(_ADD, rows)
            connection.executemany(_TRIM, [(user, domain, user, domain, self.length) for user, domain in touched])

    def of(self, users: Sequence[str], domains: Sequence[str]) -> list[dict[str, list[Event]]]:
        """One look-up by key for each pair."""
        check_texts((*users, *domains))
        with self._errors():
            read = self._connection.execute
            found = [{d: [unpacked(user, d, *row) for row in read(_READ, (user, d))] for d in domains} for user in users]
        return [{d: events for d, events in of.items() if events} for of in found]

    def forget(self, user: str, domains: Sequence[str]) -> None:
        """One transaction."""
        check_texts((user, *domains))
        with self._errors(), self._writing() as connection:
            connection.executemany("DELETE FROM event WHERE user = ? AND domain = ?", [(user, d) for d in domains])

    def check(self) -> None:
        """Reads the file's version."""
        with self._errors():
            self._connection.execute("PRAGMA user_version").fetchone()

    def close(self) -> None:
        """Closes every thread's connection."""
        with self._lock:
            for connection in self._open:
                connection.close()
            self._open.clear()
            self._own = threading.local()

    @property
    def _connection(self) -> sqlite3.Connection:
        """This thread's."""
        found = getattr(self._own, "connection", None)
        if found is None:
            found = sqlite3.connect(self.path, timeout=self.patience, isolation_level=None, check_same_thread=False)
            with self._lock:
                self._open.append(found)
            self._own.connection = found
            found.execute("PRAGMA synchronous = FULL")
        return found

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that has the file to itself from its begin: two that begin by reading would block each other."""
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")

    def _make(self, connection: sqlite3.Connection) -> None:
        """The table, unless it is there.

        Raises:
            HistoryError: tables of something else; they are left as they were.
        """
        with self._writing():
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            known = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            if not known and not version:
                connection.execute(_TABLE)
                connection.execute(f"PRAGMA user_version = {VERSION}")
            elif (known, version) != (["event"], VERSION):
                came = f"{self.path} holds tables {known}, version {version}"
                raise HistoryError(came, f"a store of histories of version {VERSION}", "give another path")
        connection.execute("PRAGMA journal_mode = WAL")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            do = "see that the disk has room, that the file may be written and that no other program holds it"
            raise HistoryError(f"{self.path}: {error}", "a file that can be read and written", do) from error


_TABLE = """CREATE TABLE event (
    user TEXT NOT NULL, domain TEXT NOT NULL, time INTEGER NOT NULL, what TEXT NOT NULL, told INTEGER NOT NULL,
    PRIMARY KEY (user, domain, time, what)
) WITHOUT ROWID"""
_ADD = """INSERT OR IGNORE INTO event
    SELECT ?, ?, ?, ?, IFNULL(MAX(told), 0) + 1 FROM event WHERE user = ? AND domain = ?"""
_READ = "SELECT time, what FROM event WHERE user = ? AND domain = ? ORDER BY time, told"
_TRIM = """DELETE FROM event WHERE user = ? AND domain = ? AND (time, what) IN (
    SELECT time, what FROM event WHERE user = ? AND domain = ? ORDER BY time DESC, told DESC LIMIT -1 OFFSET ?)"""
