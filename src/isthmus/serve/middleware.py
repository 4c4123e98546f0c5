"""What stands before the routes: a key, a limit on the size of bodies, and a count of every request."""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import Collection

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from isthmus.serve.messages import fault
from isthmus.serve.metrics import Metrics

TOO_LARGE = "a body that is too large"


class Gate:
    """ASGI middleware.

    Args:
        app: what it stands before.
        metrics: counts requests.
        largest: bytes of a body; larger ones get 413, whether or not they say how large they are.
        key: asked for in ``X-API-Key`` or as a bearer token, else 401; None: nobody is asked.
        free: paths that need no key.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, largest: int, key: str | None, free: Collection[str]) -> None:
        self.app, self.metrics, self.largest, self.free = app, metrics, largest, free
        self.key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, seen = time.perf_counter(), 500, 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.largest:
                raise HTTPException(413, TOO_LARGE)
            return message

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            headers = dict(scope["headers"])
            if not self._known(headers, scope["path"]):
                await _refuse(noted, 401, "no key, or a wrong one", "the service's key in X-API-Key", "ask whoever runs it")
            elif not (told := headers.get(b"content-length", b"0")).isdigit() or int(told) > self.largest:
                await _refuse(noted, 413, TOO_LARGE, f"{self.largest:,} bytes at most", "ask in parts")
            else:
                await self.app(scope, counted, noted)
        finally:
            route = getattr(scope.get("route"), "path_format", "other")
            self.metrics.request(scope["method"] if route != "other" else "any", route, status, time.perf_counter() - began)

    def _known(self, headers: dict[bytes, bytes], path: str) -> bool:
        if self.key is None or path in self.free:
            return True
        given = headers.get(b"x-api-key") or headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        return hmac.compare_digest(given, self.key)


async def _refuse(send: Send, code: int, came: str, expected: str, do: str) -> None:
    body = json.dumps(fault(came, expected, do)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": code, "headers": headers})
    await send({"type": "http.response.body", "body": body})
