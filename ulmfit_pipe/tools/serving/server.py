"""A classifier over HTTP: batched predictions with limits, health, metrics, and a page to try it.

    ulmfit serve runs/mine/classifier

POST /predict takes ``{"texts": [...]}`` and returns ``{"predictions": [{"label", "score", "scores"}, ...]}``, the rows
of `Predictor.predict`; POST /explain takes ``{"text": ...}``. GET /health says that the process is alive, /ready that
it takes requests, /metrics has Prometheus' counters, /openapi.json describes all of it, and / is a form.
"""

import contextlib
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from importlib import resources
from typing import TYPE_CHECKING, Annotated, Any

from ulmfit_pipe.errors import UlmfitError
from ulmfit_pipe.settings.prediction import ServeSettings
from ulmfit_pipe.stages.python_input import check_texts
from ulmfit_pipe.text.predict.explain import explain
from ulmfit_pipe.text.predict.predictor import Predictor, without_unsure
from ulmfit_pipe.tools.serving.batching import Batcher, QueueFullError, StoppingError
from ulmfit_pipe.training.distributed.launch import new_accelerator

if TYPE_CHECKING:
    from fastapi import FastAPI

BYTES_OF_A_CHARACTER = 12  # at most, in JSON: a character outside the basic plane is two escapes of six bytes
MOST_BYTES = 64 * 2**20  # of a request
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # buckets of the histogram
HEADERS = {"Content-Security-Policy": "default-src 'self' 'unsafe-inline'", "X-Content-Type-Options": "nosniff"}


class ServeError(UlmfitError):
    """The classifier cannot be served: a package is missing, or the port is taken."""


def serve(settings: ServeSettings) -> None:
    """Serve a classifier until the process is told to stop (SIGTERM or Ctrl-C); running requests are answered first.

    Raises:
        ServeError: fastapi, uvicorn or prometheus-client is not installed, or the address cannot be listened on.
        ArtifactError: The folder is not a classifier.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise ServeError(_missing(error)) from error
    accelerator = new_accelerator(mixed_precision=settings.mixed_precision)
    predictor = Predictor.load(settings.model, accelerator=accelerator, trust_remote_code=settings.trust_remote_code)
    app = build_app(predictor, settings)
    listening = _listen(settings.host, settings.port)
    host, port = listening.getsockname()[:2]
    print(f"serving {settings.model} on http://{host}:{port} (labels: {', '.join(predictor.label_names)})", flush=True)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=settings.stop_seconds)
    with _signals_left_to_the_server():
        uvicorn.Server(config).run(sockets=[listening])


@contextlib.contextmanager
def _signals_left_to_the_server() -> Iterator[None]:
    """Ignore what stops a process: uvicorn has handlers of its own, and raises the signal again once it has ended."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def build_app(predictor: Predictor, settings: ServeSettings) -> Any:
    """Return the ASGI application, for any server that runs one.

    Raises:
        ServeError: fastapi or prometheus-client is not installed.
    """
    try:
        import fastapi

        measures = _Measures()
    except ImportError as error:
        raise ServeError(_missing(error)) from error
    batcher = Batcher(
        predictor.predict,
        most_texts=settings.batch_texts,
        most_waiting=settings.most_waiting,
        seen=measures.sizes.observe,
    )
    measures.waiting.set_function(lambda: batcher.waiting)

    @contextlib.asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        batcher.start()
        yield
        await batcher.stop()

    app = fastapi.FastAPI(title="ulmfit_pipe", lifespan=lifespan, docs_url=None, redoc_url=None)
    _add_answers(app, predictor, batcher, settings)
    _add_state(app, batcher, measures)
    app.middleware("http")(measures.measured)
    app.add_middleware(_LimitedBody, most=settings.request_texts * settings.text_characters * BYTES_OF_A_CHARACTER)
    return app


def _add_answers(app: "FastAPI", predictor: Predictor, batcher: Batcher, settings: ServeSettings) -> None:
    """Add what answers about texts."""
    from fastapi import HTTPException
    from pydantic import BaseModel, Field

    Text = Annotated[str, Field(max_length=settings.text_characters)]  # noqa: N806

    class Texts(BaseModel):
        """Texts to predict."""

        texts: Annotated[list[Text], Field(max_length=settings.request_texts)]
        abstain_below: float | None = None

    class OneText(BaseModel):
        """A text to explain, and the label: null takes the one with the highest score."""

        text: Text
        label: str | None = None

    @app.post("/predict")
    async def predict(body: Texts) -> dict[str, Any]:
        """Return label, score and all scores of each text, in order."""
        with _as_answers(HTTPException):
            check_texts(body.texts)
            predictor.check_abstention(body.abstain_below)
            rows = await batcher.submit(body.texts) if body.texts else []
        return {"predictions": without_unsure(rows, body.abstain_below)}

    @app.post("/explain")
    async def why(body: OneText) -> dict[str, Any]:
        """Return how much each word moves the classifier towards the label."""
        with _as_answers(HTTPException):
            check_texts([body.text])
            found = await batcher.run(lambda: explain(predictor, body.text, label=body.label))
        return {"label": found.label, "score": found.score, "words": found.words, "html": found._repr_html_()}


def _add_state(app: "FastAPI", batcher: Batcher, measures: "_Measures") -> None:
    """Add what answers about the server itself, and the page."""
    from fastapi import HTTPException, Response
    from fastapi.responses import HTMLResponse

    page = resources.files("ulmfit_pipe.tools.serving").joinpath("page.html").read_text(encoding="utf-8")

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Say that the process is alive."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        """Say whether another text would be taken."""
        if not batcher.ready:
            raise HTTPException(503, "too many texts wait, or the server is being stopped")
        return {"status": "ready"}

    @app.get("/metrics")
    async def metrics() -> Response:
        """Return Prometheus' counters."""
        return Response(measures.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/", include_in_schema=False)
    async def form() -> HTMLResponse:
        return HTMLResponse(page)


class _Measures:
    """Counters of one application, for Prometheus."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self._registry = CollectorRegistry()
        of_this: dict[str, Any] = {"registry": self._registry}
        self._answers = Counter("ulmfit_requests", "Requests by path and status", ["path", "status"], **of_this)
        self._seconds = Histogram("ulmfit_request_seconds", "Seconds of a request", ["path"], **of_this)
        self.sizes = Histogram("ulmfit_batch_texts", "Texts of a batch", buckets=BATCH_SIZES, **of_this)
        self.waiting = Gauge("ulmfit_waiting_texts", "Texts not answered yet", **of_this)

    async def measured(self, request: Any, proceed: Any) -> Any:
        """Answer a request, count it by its path and status, and add the headers that every answer has."""
        started = time.perf_counter()
        response = await proceed(request)
        route = request.scope.get("route")
        path = "none" if route is None else route.path  # not what was asked for: any path may be
        self._answers.labels(path, response.status_code).inc()
        self._seconds.labels(path).observe(time.perf_counter() - started)
        response.headers.update(HEADERS)
        return response

    def text(self) -> bytes:
        """Return all counters in Prometheus' format."""
        from prometheus_client import generate_latest

        found: bytes = generate_latest(self._registry)
        return found


class _LimitedBody:
    """Refuses a request whose body is larger than any allowed one, before it is held in memory."""

    def __init__(self, app: Any, *, most: int) -> None:
        self.app, self.most = app, min(most, MOST_BYTES)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass the request on, counting the bytes of its body; past the limit the application sees a client gone."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        size = 0

        async def limited() -> Any:
            nonlocal size
            if size > self.most:
                return {"type": "http.disconnect"}
            message = await receive()
            size += len(message.get("body", b""))
            return message if size <= self.most else {"type": "http.disconnect"}

        async def unless_too_large(message: Any) -> None:
            if size <= self.most:
                await send(message)

        try:
            await self.app(scope, limited, unless_too_large)
        except Exception:
            if size <= self.most:
                raise
        if size > self.most:
            body = f'{{"detail": "the request has more than {self.most:,} bytes; send fewer texts at a time"}}'.encode()
            headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
            await send({"type": "http.response.start", "status": 413, "headers": headers})
            await send({"type": "http.response.body", "body": body})


@contextlib.contextmanager
def _as_answers(answer: Any) -> Iterator[None]:
    """Turn what can be wrong with a request into a status and a sentence."""
    try:
        yield
    except QueueFullError:
        raise answer(429, "too many texts wait; ask again in a second", headers={"Retry-After": "1"}) from None
    except StoppingError:
        raise answer(503, "the server is being stopped") from None
    except (ValueError, TypeError, UlmfitError) as error:
        raise answer(422, str(error)) from None


def _missing(error: ImportError) -> str:
    return f"{error.name} is not installed, which serving needs: pip install 'ulmfit_pipe[serve]'"


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port))
    except OSError as error:
        raise ServeError(
            f"cannot listen on port {port} of {host}: {error.strerror or error}; give another --port; 0 takes a free "
            "one"
        ) from error
