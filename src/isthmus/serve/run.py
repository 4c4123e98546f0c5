"""``open_histories`` and ``run``: from what the command line says to a service that listens."""

from __future__ import annotations

import socket
from pathlib import Path

from isthmus.errors import ConfigError
from isthmus.serve.histories import Histories
from isthmus.serve.service import Settings, create_app

GRACE = 30  # seconds that requests have to end when the service is asked to stop
NONE = "none"


def open_histories(where: str) -> Histories | None:
    """A store of live events.

    Args:
        where: path of a SQLite file, the URL of a Redis server (``redis://host:port/0``), or ``none``.

    Raises:
        ConfigError: the client is not installed, or a URL that is none.
        HistoryError: a file that cannot be opened.
    """
    if where == NONE:
        return None
    if "://" in where:
        from isthmus.serve.redis_histories import RedisHistories

        return RedisHistories(where)
    from isthmus.serve.sqlite_histories import SqliteHistories

    return SqliteHistories(Path(where))


def run(settings: Settings, histories: Histories | None, host: str, port: int) -> None:
    """Serves until it is asked to stop; requests that have begun are answered.

    Raises:
        ConfigError: an address that is taken, or the packages for it are not installed.
        SourceError: bundles that cannot be served.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise ConfigError("uvicorn is not installed", "the extra 'serve'", "pip install 'isthmus[serve]'") from error
    _free(host, port)
    app = create_app(settings, histories)
    uvicorn.run(app, host=host, port=port, log_level="info", access_log=False, timeout_graceful_shutdown=GRACE)


def _free(host: str, port: int) -> None:
    """Refuses an address that is taken before bundles are read."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"{host}:{port} cannot be listened on ({error.strerror})", "a free address", "choose another --port"
            ) from error
