"""HTTP paths of a server, and the handlers of its errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import ValidationError
from sse_starlette.sse import AppStatus
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from unfuse.errors import UnfuseError
from unfuse.serving.conversation import ChatRequest
from unfuse.serving.disconnect import ClientDisconnectedError
from unfuse.serving.engine_loop import BusyError
from unfuse.serving.guard import UPLOADS, Guard
from unfuse.serving.intake import display_name
from unfuse.serving.kinds import MAX_PICTURES
from unfuse.serving.page import page
from unfuse.serving.service import Service
from unfuse.serving.streamed import EngineStoppedError
from unfuse.serving.wire import RequestError, as_request_error, file_object

_MAX_FIELDS: Final = 16
_LARGE_JSON: Final = 1 << 20
_COUNTED: Final = ("/v1/files", "/v1/chat/completions", "/v1/models", "/v1/unfuse", "/health", "/ready", "/metrics")


def build_app(service: Service) -> Guard:
    """Build the application and the guard around it."""
    # An answer may finish while the server shuts down; uvicorn's own time limit ends the others.
    AppStatus.enable_automatic_graceful_drain = False

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await asyncio.to_thread(service.close)

    app = FastAPI(title="unfuse serve", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    _handle_errors(app, service)
    _add_files(app, service)
    _add_chat(app, service)
    _add_states(app, service)
    for route in app.routes:
        if isinstance(route, APIRoute) and route.methods and "GET" in route.methods:
            route.methods.add("HEAD")  # probes of load balancers; the server drops the body

    def observe(path: str, status: int) -> None:
        counted = next((p for p in _COUNTED if path == p or path.startswith(f"{p}/")), "/" if path == "/" else "other")
        service.metrics.requests.labels(counted, str(status)).inc()

    return Guard(app, service.settings, observe)


def _add_files(app: FastAPI, service: Service) -> None:
    @app.post(UPLOADS)
    async def upload(request: Request) -> Response:
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise RequestError(
                415, "wrong_content_type", "an upload: expected multipart/form-data with a part named file"
            )
        async with request.form(max_files=MAX_PICTURES, max_fields=_MAX_FIELDS) as form:
            parts = [part for part in form.getlist("file") if isinstance(part, UploadFile)]
            if not parts or any(not part.size for part in parts):
                raise RequestError(400, "no_file", "an upload: expected a part named file, not empty", param="file")
            name = display_name(parts[0].filename or "")
            scene, reused = await service.upload([part.file for part in parts], name)
        return JSONResponse(file_object(scene, reused=reused, name=name))

    @app.get(UPLOADS)
    async def listed() -> Response:
        data = [file_object(scene) for scene in reversed(service.scenes.all())]
        ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {}
        return JSONResponse({"object": "list", "data": data, "has_more": False, **ends})

    @app.get(UPLOADS + "/{scene_id}")
    async def one(scene_id: str) -> Response:
        return JSONResponse(file_object(service.scene(scene_id)))

    @app.delete(UPLOADS + "/{scene_id}")
    async def delete(scene_id: str) -> Response:
        await service.scenes.delete(service.scene(scene_id))
        return JSONResponse({"id": scene_id, "object": "file", "deleted": True})

    @app.get(UPLOADS + "/{scene_id}/frames/{index}")
    async def frame(scene_id: str, index: int) -> Response:
        pictures = service.scene(scene_id).pictures
        if not 0 <= index < len(pictures):
            raise RequestError(404, "no_such_frame", f"frame {index}: expected 0 to {len(pictures) - 1}")
        return Response(pictures[index], media_type="image/png")

    @app.get(UPLOADS + "/{scene_id}/content")
    async def content(scene_id: str) -> Response:
        service.scene(scene_id)
        raise RequestError(404, "not_kept", "content: recordings are not kept, only their features and frames")

    @app.post("/v1/unfuse/demo/{name}")
    async def demo(name: str) -> Response:
        scene, reused = await service.demo(name)
        return JSONResponse(file_object(scene, reused=reused))


def _add_chat(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        reply = await service.chat(await _chat_request(request), request.receive)
        return reply if isinstance(reply, Response) else JSONResponse(dict(reply))

    def model() -> dict[str, Any]:
        return {"id": service.model_id, "object": "model", "created": service.created, "owned_by": "unfuse"}

    @app.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [model()]})

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> Response:
        if name != service.model_id:
            raise RequestError(404, "model_not_found", f"model {name!r:.80}: expected {service.model_id!r}")
        return JSONResponse(model())


def _add_states(app: FastAPI, service: Service) -> None:
    shown = page()

    @app.get("/")
    async def index() -> Response:
        return HTMLResponse(shown.html, headers={"content-security-policy": shown.policy})

    @app.get("/v1/unfuse")
    async def about() -> Response:
        return JSONResponse(dict(service.about))

    @app.get("/health")
    async def health() -> Response:
        return _state(service.engine.alive, "alive", "the engine has stopped")

    @app.get("/ready")
    async def ready() -> Response:
        return _state(service.engine.ready, "ready", "the model is warming up, or has stopped")

    @app.get("/metrics")
    async def metrics() -> Response:
        return PlainTextResponse(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _state(good: bool, yes: str, no: str) -> Response:
    return JSONResponse({"status": yes if good else no}, status_code=200 if good else 503)


async def _chat_request(request: Request) -> ChatRequest:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # what a form of another site's page can send is none
        raise RequestError(415, "wrong_content_type", f"Content-Type {kind!r:.60}: expected application/json")
    body = await request.body()
    try:
        if len(body) > _LARGE_JSON:
            return await asyncio.to_thread(_parsed, body)
        return _parsed(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:120]
        code = "unknown_parameter" if first["type"] == "extra_forbidden" else "invalid_value"
        raise RequestError(400, code, f"{where or 'the request'}: {first['msg']}", param=where or None) from None
    except (ValueError, RecursionError) as error:
        raise RequestError(400, "invalid_json", f"the request: found no JSON ({type(error).__name__})") from None


def _parsed(body: bytes) -> ChatRequest:
    return ChatRequest.model_validate(json.loads(body.decode("utf-8")))


def _handle_errors(app: FastAPI, service: Service) -> None:
    def response(error: RequestError) -> Response:
        service.metrics.errors.labels(error.code).inc()
        return JSONResponse(error.body, status_code=error.status, headers=error.headers)

    async def own_error(_: Request, error: Exception) -> Response:
        return response(as_request_error(error))

    async def http_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = {404: "no_such_path", 405: "no_such_method"}.get(error.status_code, "bad_request")
        return response(RequestError(error.status_code, code, str(error.detail), headers=error.headers))

    async def disconnected(_: Request, __: Exception) -> Response:
        return Response(status_code=499)  # the client does not read it; the metrics use nginx's number

    async def invalid(_: Request, __: Exception) -> Response:
        return response(RequestError(404, "no_such_path", "Not Found"))

    from fastapi.exceptions import RequestValidationError

    for kind in (RequestError, UnfuseError, BusyError, EngineStoppedError, TimeoutError, Exception):
        app.add_exception_handler(kind, own_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(ClientDisconnectedError, disconnected)
    app.add_exception_handler(RequestValidationError, invalid)
