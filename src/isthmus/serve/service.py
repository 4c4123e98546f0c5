"""``create_app``: the HTTP service over bundles and live histories."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, cast

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

import isthmus
from isthmus.errors import ConfigError, HistoryError, IsthmusError
from isthmus.serve.asks import Answer, Ask
from isthmus.serve.batching import Batcher
from isthmus.serve.bundle import Bundle
from isthmus.serve.catalogue_search import history_of, items_like, users_like
from isthmus.serve.engine import Engine
from isthmus.serve.histories import Histories
from isthmus.serve.messages import (
    AnswerMessage,
    EventsRequest,
    FaultMessage,
    RankRequest,
    RecommendRequest,
    SimilarMessage,
    SimilarRequest,
    fault,
    items_of,
)
from isthmus.serve.metrics import Metrics
from isthmus.serve.middleware import Gate
from isthmus.serve.variants import Variant, Variants

PAGE = Path(__file__).parent / "page.html"
FREE = ("/healthz", "/readyz", "/", "/favicon.ico")  # need no key
STALE = '199 isthmus "live histories do not answer: events since the export are not in"'
log = logging.getLogger("isthmus.serve")


@dataclass(frozen=True, slots=True)
class Settings:
    """How to serve.

    Attributes:
        bundles: folders.
        shares: of the users, for each bundle; None: alike.
        api_key: asked for in ``X-API-Key`` or as a bearer token; None: nobody is asked.
        watch: seconds between looks at the folders; 0: bundles are exchanged only when ``/v1/reload`` is asked to.
        batch: questions answered together, at most.
        workers: threads that answer.
        threads: of one call of a graph.
        largest: bytes of a request's body.
        page: show the page to try it at ``/``, and let it search items and users.
    """

    bundles: Sequence[Path]
    shares: Sequence[float] | None = None
    api_key: str | None = None
    watch: float = 5.0
    batch: int = 32
    workers: int = 2
    threads: int = 1
    largest: int = 1 << 20
    page: bool = True


@dataclass
class Service:
    """What the routes share."""

    settings: Settings
    histories: Histories | None
    executor: ThreadPoolExecutor = field(init=False)
    beside: ThreadPoolExecutor = field(init=False)
    metrics: Metrics = field(init=False)
    variants: Variants = field(init=False)
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self.executor = ThreadPoolExecutor(self.settings.workers, thread_name_prefix="answer")
        self.beside = ThreadPoolExecutor(4, thread_name_prefix="beside")  # what must not wait for answers: histories, new bundles
        self.metrics = Metrics()
        s = self.settings
        self.variants = Variants(s.bundles, s.shares, self._batcher, self.beside, s.threads)

    def _batcher(self, bundle: Bundle) -> Batcher:
        s = self.settings
        return Batcher(Engine(bundle, self.histories), self.executor, most=s.batch, workers=s.workers, saw=self.metrics.batch.observe)

    async def reload(self, *, force: bool = False) -> list[tuple[Variant, bool]]:
        """Reads changed bundles, one reader at a time."""
        async with self.reading:
            done = await self.variants.reload(force=force)
        for _, served in done:
            self.metrics.reloads.labels("served" if served else "refused").inc()
        return done

    async def watch(self) -> None:
        """Looks for changed bundles for ever."""
        while True:
            await asyncio.sleep(self.settings.watch)
            try:
                await self.reload()
            except Exception:
                log.exception("looking for new bundles")

    async def aside(self, work: Callable[[], Any]) -> Any:
        """Runs what waits for disks or other servers."""
        return await asyncio.get_running_loop().run_in_executor(self.beside, work)

    def close(self) -> None:
        """Lets what runs come to its end."""
        self.executor.shutdown()
        self.beside.shutdown()


def create_app(settings: Settings, histories: Histories | None = None) -> FastAPI:
    """The service as an ASGI application.

    Args:
        settings: how to serve.
        histories: the store of live events; None: events are not accepted.

    Raises:
        ConfigError, SourceError: bundles that cannot be served.
    """
    service = Service(settings, histories)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(service.watch()) if settings.watch else None
        yield
        if watching is not None:
            watching.cancel()
        service.close()

    told = {"title": "Isthmus", "version": isthmus.__version__, "description": _DESCRIPTION, "responses": _FAULTS}
    app = FastAPIOffline(lifespan=lifespan, redoc_url=None, **told)  # /docs with all it needs: services run where no CDN is reached
    app.state.service = service
    app.add_middleware(Gate, metrics=service.metrics, largest=settings.largest, key=settings.api_key, free=FREE)
    _faults(app)
    _answers(app, service)
    _events(app, service)
    _about(app, service)
    if settings.page:
        _page(app, service)
    return app


_DESCRIPTION = """One recommender for all domains.

Ask `recommend` for a domain's best items for a user, or for a history that you tell; `rank` puts candidates in order; `similar` finds
items like one. Tell `events` what users did: the next answer reflects it."""
_FAULTS: dict[int | str, dict[str, Any]] = {
    code: {"model": FaultMessage, "description": text}
    for code, text in {
        400: "No JSON.",
        401: "No key, or a wrong one.",
        404: "No such domain or bundle.",
        413: "Too large.",
        422: "A field that is missing or wrong.",
        503: "Live histories do not answer.",
    }.items()
}
Words = Annotated[str, Query(max_length=200, description="Part of an id or title.")]
Most = Annotated[int, Query(ge=1, le=100)]
UserId = Annotated[str, Query(min_length=1, max_length=512)]
Named = Annotated[str | None, Query(description="Ask this bundle, by its name.", max_length=128)]


def _answers(app: FastAPI, service: Service) -> None:
    """The questions."""

    async def answered(ask: Ask, domain: str, named: str | None) -> Response:
        variant = service.variants.of(None if ask.user is None else str(ask.user), named)
        batcher = variant.batcher
        batcher.engine.bundle.domain(domain)
        answer: Answer = await batcher.recommend(ask, domain)
        service.metrics.basis.labels(domain, answer.basis).inc()
        body = {
            "domain": domain,
            "bundle": batcher.engine.bundle.name,
            "basis": answer.basis,
            "items": items_of(answer, ask.why),
            "unknown": list(answer.unknown),
            "stale": answer.stale,
        }
        return _json(body, headers={"Warning": STALE} if answer.stale else None)

    @app.post("/v1/{domain:path}/recommend", response_model=AnswerMessage, summary="The best items of a domain", tags=["answers"])
    async def recommend(domain: str, request: RecommendRequest, bundle: Named = None) -> Response:
        return await answered(request.ask(), domain, bundle)

    @app.post("/v1/{domain:path}/rank", response_model=AnswerMessage, summary="Candidates in order", tags=["answers"])
    async def rank(domain: str, request: RankRequest, bundle: Named = None) -> Response:
        return await answered(request.ask(), domain, bundle)

    @app.post("/v1/{domain:path}/similar", response_model=SimilarMessage, summary="Items like one", tags=["answers"])
    async def similar(domain: str, request: SimilarRequest, bundle: Named = None) -> Response:
        engine = service.variants.of(None, bundle).engine
        engine.bundle.domain(domain)
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(service.executor, engine.similar, request.item, domain, request.k)
        items = items_of(Answer(found, "profile"), why=False)
        return _json({"domain": domain, "bundle": engine.bundle.name, "items": items})


def _events(app: FastAPI, service: Service) -> None:
    """Live histories."""

    def store() -> Histories:
        if service.histories is None:
            raise HTTPException(404, "this service keeps no live histories: start it with --histories")
        return service.histories

    @app.post("/v1/events", status_code=201, summary="Tell what users did", tags=["events"])
    async def tell(request: EventsRequest) -> Response:
        histories, engine = store(), service.variants.all[0].engine
        events = [engine.users.event(e.user, e.domain, e.item, e.time, e.behaviour, e.label) for e in request.events]
        await service.aside(lambda: histories.append(events))
        service.metrics.events.inc(len(events))
        return _json({"accepted": len(events)}, 201)

    @app.delete("/v1/events", summary="Forget a user's live events", tags=["events"])
    async def forget(user: UserId) -> Response:
        histories, domains = store(), service.variants.all[0].engine.bundle.domains
        await service.aside(lambda: histories.forget(user, domains))
        return _json({"forgotten": user})


def _about(app: FastAPI, service: Service) -> None:
    """What there is, and how it does."""

    @app.get("/v1/domains", summary="Domains and bundles", tags=["about"])
    async def domains() -> Response:
        bundles = [_facts(variant) for variant in service.variants.all]
        first = service.variants.all[0].engine.bundle
        names = [{"domain": name, "items": len(first.catalogues[d].item)} for d, name in enumerate(first.domains)]
        return _json({"domains": names, "bundles": bundles, "events": service.histories is not None})

    @app.post("/v1/reload", summary="Read the bundles' folders again", tags=["about"])
    async def reload() -> Response:
        done = await service.reload(force=True)
        bundles = [{**_facts(variant), "served": served} for variant, served in done]
        return _json({"bundles": bundles}, 200 if all(served for _, served in done) else 409)

    @app.get("/healthz", summary="The process runs", tags=["about"])
    async def healthz() -> Response:
        return _json({"ok": True})

    @app.get("/readyz", summary="It can answer; whether live histories do", tags=["about"])
    async def readyz() -> Response:
        histories: str | None = None
        if service.histories is not None:
            try:
                await service.aside(service.histories.check)
                histories = "ok"
            except HistoryError as error:
                histories = str(error)  # answers come from stored profiles meanwhile: still ready
        return _json({"ready": True, "histories": histories, "bundles": [v.engine.bundle.name for v in service.variants.all]})

    @app.get("/metrics", summary="For Prometheus", tags=["about"])
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _page(app: FastAPI, service: Service) -> None:
    """The page to try it, and what it searches."""
    html = PAGE.read_text(encoding="utf-8")

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(html, headers={"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"})

    @app.get("/v1/items", summary="Items by id or title", tags=["page"])
    async def items(domain: Annotated[str, Query(max_length=512)], q: Words = "", k: Most = 20) -> Response:
        bundle = service.variants.all[0].engine.bundle
        d = bundle.domain(domain)
        return _json({"items": await service.aside(lambda: items_like(bundle, d, q, k))})

    @app.get("/v1/users", summary="Users by id", tags=["page"])
    async def users(q: Words = "", k: Most = 20) -> Response:
        bundle = service.variants.all[0].engine.bundle
        return _json({"users": await service.aside(lambda: users_like(bundle, q, k))})

    @app.get("/v1/history", summary="What a user did", tags=["page"])
    async def history(user: UserId, k: Most = 20) -> Response:
        engine = service.variants.of(user).engine
        return _json(await service.aside(lambda: history_of(engine, user, k)))


_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'"


def _facts(variant: Variant) -> dict[str, Any]:
    bundle = variant.engine.bundle
    stages = [{"name": one.name, "model": one.model, "task": one.task} for one in bundle.stages]
    facts = {"bundle": bundle.name, "share": variant.share, "made": bundle.manifest["made"], "stages": stages}
    return facts | {"items": len(bundle.items), "users": len(bundle.users), "refused": variant.refused}


def _faults(app: FastAPI) -> None:
    """Every error as JSON with what came, what was expected and what to do."""

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "json_invalid":
            return _fault(400, "a body that is no JSON", "a JSON object", "see /docs", where)
        if isinstance(first.get("input"), bytes):
            return _fault(422, "a body that does not say that it is JSON", "Content-Type: application/json", "send that header", where)
        came = f"{where}: {_short(first.get('input'))}"
        return _fault(422, came, str(first["msg"]), "see /docs", where)

    @app.exception_handler(ConfigError)
    async def wrong(request: Request, error: ConfigError) -> Response:
        missing = error.came.startswith(("no domain", "bundle "))
        return _fault(404 if missing else 422, error.came, error.expected, error.do)

    @app.exception_handler(HistoryError)
    async def away(_: Request, error: HistoryError) -> Response:
        response = _fault(503, error.came, error.expected, "tell the same events again in a moment")
        response.headers["Retry-After"] = "1"
        return response

    @app.exception_handler(IsthmusError)
    async def other(_: Request, error: IsthmusError) -> Response:
        return _fault(422, error.came, error.expected, error.do)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return _fault(500, "the service failed", "", "ask again; its log says why")

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
        response = _fault(error.status_code, str(error.detail), "", "see /docs")
        response.headers.update(error.headers or {})
        return response


def _fault(code: int, came: str, expected: str = "", do: str = "", where: str | None = None) -> Response:
    return _json(fault(came, expected, do, where), code)


def _json(body: Any, code: int = 200, headers: dict[str, str] | None = None) -> Response:
    text = json.dumps(body, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return Response(text, code, headers=headers, media_type="application/json")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else cast("str", text[:97] + "...")
