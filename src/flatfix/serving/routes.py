"""What can be asked of the server over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse

import flatfix
from flatfix.inference.decode import FORMATS
from flatfix.serving import problems
from flatfix.serving.answers import (
    Explained,
    Feedback,
    Health,
    Predicted,
    ProblemDetails,
    Received,
    Reloaded,
    problem_content,
)
from flatfix.serving.body import ONE, SEVERAL, feedback_of, pictures_of
from flatfix.serving.guard import Guard
from flatfix.serving.keys import Keys
from flatfix.serving.logs import AccessLog, configure
from flatfix.serving.metrics import Metrics, Scrapes
from flatfix.serving.outcome import UNDER_WAY
from flatfix.serving.pages import page
from flatfix.serving.problems import Problem
from flatfix.serving.service import Service
from flatfix.serving.settings import Settings

ABOUT = """\
Send a picture to `POST /predict` and read its class. The server answers with the version of the registered model that
an alias names, and changes to another one by itself when the alias moves.

    curl -F file=@picture.jpg http://127.0.0.1:8000/predict

Every error is JSON of one shape (RFC 9457), and every answer has the header `X-Request-ID`.
"""
PICTURE = {"type": "string", "format": "binary"}
FILE = {ONE: {**PICTURE, "description": f"A picture: {', '.join(FORMATS)}."}}
FILES = {SEVERAL: {"type": "array", "items": PICTURE, "description": "Several pictures."}}
REFUSALS = {
    401: "No key, or one that is not known.",
    403: "The key is for something else.",
    408: "The body did not arrive in time.",
    413: "The body, the picture or the number of pictures is too large.",
    415: "Not a picture.",
    421: "Not a host that this server answers for.",
    422: "A picture that is cut off or damaged, or another field than `file` or `files`.",
    429: "Too many requests with this key; `Retry-After` says when to come back.",
    503: "More requests than the server can bear, or no model yet; `Retry-After` says when to come back.",
    504: "Not answered before the deadline.",
}


def build(settings: Settings) -> Guard:
    """Return the application with everything that stands before it."""
    configure()
    metrics = Metrics()
    service = Service(settings, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.stop()

    app = FastAPI(
        title="Flatfix",
        summary="What is in the picture?",
        description=ABOUT,
        version=flatfix.__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        exception_handlers=problems.HANDLERS,
        responses=_refusals(421, 503, 504),
    )
    add_routes(app, service, Keys.read(settings.keys) if settings.keys else None)
    return Guard(app, limits=settings.limits, hosts=settings.hosts, metrics=metrics, log=AccessLog())


def add_routes(app: FastAPI, service: Service, keys: Keys | None) -> None:
    """Add every route."""
    settings = service.settings
    scrapes = Scrapes(service.metrics)
    predict_key: list[dict[str, list[str]]] = [{"key": []}] if settings.predict_needs_key else []

    def authorize(request: Request, scope: str) -> None:
        """Ask for a key, and leave its name for the log."""
        if keys is None:
            detail = "This server has no keys: set auth.keys to a file made with python -m flatfix.serving.keys."
            raise Problem(403, "Not allowed", detail, reason="forbidden")
        request.state.key = keys.check(request.headers.get("authorization"), scope)

    async def pictures(request: Request, max_files: int) -> list[bytes]:
        if settings.predict_needs_key:
            authorize(request, "predict")
        return await pictures_of(request, max_files=max_files)

    @app.post(
        "/predict",
        summary="Classify pictures",
        response_model=Predicted,
        responses=_refusals(401, 403, 408, 413, 415, 422, 429),
        openapi_extra=_takes_pictures({**FILE, **FILES}, predict_key),
    )
    async def predict(request: Request) -> Response:
        """Answer each picture with its class, the decision, and the calibrated probability of every class.

        Send one picture as the form field `file`, several as `file` or `files`, or the bytes of one as the body.
        Either all pictures are answered, or none and the problem says which one is at fault.
        """
        found = await pictures(request, settings.limits.files)
        return Response(await service.predict(found, request.state.request_id), media_type="application/json")

    @app.post(
        "/explain",
        summary="See where a picture shows its class",
        response_model=Explained,
        responses=_refusals(401, 403, 408, 413, 415, 422, 429),
        openapi_extra=_takes_pictures(FILE, predict_key),
    )
    async def explain(request: Request) -> Response:
        """Cover the picture part by part, and tell how much of the decided class goes with each.

        One picture, sent as to `/predict`. It takes fifty predictions, and waits behind those of others.
        """
        (picture,) = await pictures(request, 1)
        return Response(await service.explain(picture, request.state.request_id), media_type="application/json")

    @app.post(
        "/feedback",
        summary="Tell the true class of a picture",
        status_code=202,
        response_model=Received,
        responses=_refusals(401, 403, 408, 413, 422, 429),
        openapi_extra=_takes_feedback(predict_key),
    )
    async def feedback(request: Request) -> Response:
        """Keep the true class of a picture that was answered, to measure later how good the model is."""
        if settings.predict_needs_key:
            authorize(request, "predict")
        told = await feedback_of(request)
        await service.keep(told)
        return JSONResponse({"request_id": told.request_id}, 202)

    unwell: dict[int | str, dict[str, Any]] = {
        503: {"model": Health, "description": "No model yet, or the model is lost; `reasons` says why."}
    }

    @app.get("/health", summary="How the server is", response_model=Health, responses=unwell)
    async def health() -> Response:
        """Say which version answers and why; 503 until there is one, and after it is lost."""
        state = service.health()
        return JSONResponse(state, 200 if state["status"] in ("ok", "degraded") else 503)

    @app.get("/livez", summary="Whether the process is well", response_class=Response, responses=_says(200, 503))
    async def livez() -> Response:
        """Answer 200 unless the process has to be started anew."""
        is_well = service.is_well
        return Response("ok\n" if is_well else "lost\n", 200 if is_well else 503, media_type="text/plain")

    @app.get("/readyz", summary="Whether requests may come", response_class=Response, responses=_says(200, 503))
    async def readyz() -> Response:
        """Answer 200 when pictures would be answered."""
        is_ready = service.is_ready
        return Response("ok\n" if is_ready else "not ready\n", 200 if is_ready else 503, media_type="text/plain")

    @app.get("/metrics", summary="Metrics for Prometheus", response_class=Response, responses=_says(200))
    async def metrics() -> Response:
        """Count and measure, over all workers."""
        body, media_type = await scrapes.get()
        return Response(body, media_type=media_type)

    @app.get("/info", summary="The model card", response_model=dict[str, Any])
    async def info() -> Response:
        """Tell what the model is: classes, decision, data, metrics, where it comes from."""
        return JSONResponse(service.card())

    @app.post(
        "/admin/reload",
        summary="Look at the alias now",
        response_model=Reloaded,
        responses={202: {"model": Reloaded, "description": "It is under way."}, **_refusals(401, 403, 408, 413, 429)},
        openapi_extra={"security": [{"key": []}]},
    )
    async def reload(request: Request) -> Response:
        """Follow the alias at once rather than at the next look; needs a key with the scope `admin`.

        Of several workers the one that answers looks; the others do within `poll_s`.
        """
        authorize(request, "admin")
        answer = await service.reload()
        return JSONResponse(answer, 202 if answer["outcome"] == UNDER_WAY else 200)

    for path, name in (("/", "index.html"), ("/docs", "docs.html")):
        _add_page(app, path, name)

    @app.get("/problems/{reason}", include_in_schema=False)
    async def problem(reason: str) -> Response:
        """Lead from the `type` of a problem to what it means."""
        return RedirectResponse(f"/docs#problem-{quote(reason)}")

    _describe(app)


def _add_page(app: FastAPI, path: str, name: str) -> None:
    body, headers = page(name)

    @app.get(path, include_in_schema=False)
    async def show() -> Response:
        return Response(body, headers=dict(headers))


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"description": REFUSALS[status], "content": problem_content()} for status in statuses}


def _says(*statuses: int) -> dict[int | str, dict[str, Any]]:
    words = {200: "As asked.", 503: "It is not so."}
    text = {"text/plain": {"schema": {"type": "string"}}}
    return {status: {"description": words[status], "content": text} for status in statuses}


def _takes_pictures(fields: Mapping[str, Any], security: list[dict[str, list[str]]]) -> dict[str, Any]:
    """Describe a route that takes pictures in fields of a form, or one as the body."""
    raw = {"schema": PICTURE}
    form = {"schema": {"type": "object", "properties": dict(fields)}}
    content = {"multipart/form-data": form, "image/*": raw, "application/octet-stream": raw}
    return {"requestBody": {"required": True, "content": content}, "security": security}


def _takes_feedback(security: list[dict[str, list[str]]]) -> dict[str, Any]:
    content = {"application/json": {"schema": Feedback.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}, "security": security}


def _describe(app: FastAPI) -> None:
    """Complete the OpenAPI document by what the routes cannot say."""
    made: Mapping[str, Any] = app.openapi()
    parts = app.openapi_schema = {**made}
    components = parts.setdefault("components", {})
    schema = ProblemDetails.model_json_schema(ref_template="#/components/schemas/{model}")
    components.setdefault("schemas", {})["ProblemDetails"] = schema
    for unused in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(unused, None)
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
