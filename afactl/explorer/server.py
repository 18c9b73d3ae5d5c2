"""The page of `afactl explore` and what it asks for, over HTTP on this machine alone."""

from __future__ import annotations

import base64
import socket
from collections.abc import Callable, Mapping
from functools import partial
from importlib import resources
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from afactl.errors import AfactlError, UsageError, first_line
from afactl.explorer.photo import LABEL_KEYS
from afactl.explorer.session import Place, Session

HOST = "127.0.0.1"
# Nothing that the page holds may come from elsewhere, or go there.
POLICY = "default-src 'none'; img-src 'self' blob: data:; style-src 'self'; script-src 'self'; connect-src 'self'"
FILES = {"page.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
# A photo that is dropped on the page is no larger than this.
MAX_BYTES = 200 * 2**20

Answer = Callable[[Session, Mapping[str, str]], Any]


class _Guarded:
    """Headers that keep the page to itself; requests that another page has sent are refused.

    A page of the web that is open in the same browser can send requests to this machine, too.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope.get("headers", ())}
        origin = headers.get("origin")
        strange = origin is not None and origin != f"http://{headers.get('host')}"
        answering = _error("this page answers itself alone", 403) if strange else self._app

        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [
                    (b"content-security-policy", POLICY.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                    (b"cache-control", b"no-store"),
                ]
            await send(message)

        await answering(scope, receive, guarded)


def application(session: Session) -> Starlette:
    """The page of a session, and its answers.

    Every answer is JSON, or a picture. What is wrong is {"error": one line} with status 400, or 500 where nobody
    expected it.
    """
    answers: dict[str, Answer] = {
        "run": lambda session, _: session.about() | {"counts": session.verdicts.counts()},
        "photos": _photos,
        "photo": lambda session, asked: session.photo(_place(asked)),
        "picture": lambda session, asked: Response(session.picture(_place(asked)), media_type="image/jpeg"),
        "thumbnail": lambda session, asked: Response(session.thumbnail(_place(asked)), media_type="image/jpeg"),
        "maps": lambda session, asked: session.maps(_place(asked), _point(asked), _heads(asked)),
        "label": lambda session, asked: _masked(*session.label(_place(asked), _values(asked), asked.get("walk", ""))),
        "mask": lambda session, asked: _masked(*session.mask(_place(asked), asked.get("mask", ""))),
    }
    changes: dict[str, Answer] = {
        "verdict": lambda session, asked: session.judge(_place(asked), asked.get("verdict", "")),
        "figure": _figure,
    }
    routes = [
        Route("/", partial(_file, name="page.html")),
        *(Route(f"/{name}", partial(_file, name=name)) for name in ("page.css", "page.js")),
        *(Route(f"/api/{name}", _answering(session, answer)) for name, answer in answers.items()),
        *(Route(f"/api/{name}", _answering(session, change), methods=["POST"]) for name, change in changes.items()),
        Route("/api/own", partial(_own, session=session), methods=["POST"]),
        Route("/api/review.csv", partial(_review, session=session)),
    ]
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    return Starlette(routes=routes, middleware=[hosts, Middleware(_Guarded)])


def _error(text: str, status: int) -> JSONResponse:
    return JSONResponse({"error": text}, status)


def _answering(session: Session, answer: Answer) -> Callable[[Request], Response]:
    """An endpoint; Starlette runs it in a thread, as it is no coroutine."""

    def endpoint(request: Request) -> Response:
        return _answered(lambda: answer(session, request.query_params))

    return endpoint


def _answered(work: Callable[[], Any]) -> Response:
    try:
        result = work()
    except AfactlError as error:
        return _error(str(error), 400)
    except Exception as error:  # a page that says what happened is better than one that stands still
        return _error(f"{type(error).__name__}: {first_line(error)}", 500)
    return result if isinstance(result, Response) else JSONResponse(result)


def _file(request: Request, name: str) -> Response:
    content = resources.files("afactl.explorer").joinpath(name).read_text(encoding="utf-8")
    return Response(content, media_type=FILES[name])


async def _own(request: Request, session: Session) -> Response:
    if int(request.headers.get("content-length", 0)) > MAX_BYTES:
        return _error(f"expected a photo of at most {MAX_BYTES // 2**20} MiB", 400)
    content, name = await request.body(), request.query_params.get("name", "photo")
    return _answered(lambda: session.add_own(name, content)._asdict())


def _review(request: Request, session: Session) -> Response:
    named = {"content-disposition": 'attachment; filename="review.csv"'}
    return Response(session.verdicts.text(), media_type="text/csv", headers=named)


def _photos(session: Session, asked: Mapping[str, str]) -> dict[str, Any]:
    start = _number(asked, "start", 0)
    return session.photos(asked.get("split", ""), asked.get("search", ""), asked.get("order", "list"), max(0, start))


def _figure(session: Session, asked: Mapping[str, str]) -> dict[str, str]:
    file = session.save_figure(_place(asked), _point(asked), _values(asked), asked.get("walk", ""), _heads(asked))
    return {"file": str(file)}


def _masked(png: bytes, told: dict[str, Any]) -> dict[str, Any]:
    return {"png": base64.b64encode(png).decode("ascii"), **told}


def _place(asked: Mapping[str, str]) -> Place:
    return Place(asked.get("split", ""), asked.get("photo", ""))


def _point(asked: Mapping[str, str]) -> tuple[int, int]:
    return _number(asked, "x"), _number(asked, "y")


def _values(asked: Mapping[str, str]) -> dict[str, str]:
    return {key: asked[key] for key in LABEL_KEYS if key in asked}


def _heads(asked: Mapping[str, str]) -> tuple[int, int | None] | None:
    if "layer" not in asked:
        return None
    return _number(asked, "layer"), _number(asked, "head") if "head" in asked else None


def _number(asked: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = asked.get(name, "" if default is None else str(default))
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{name}: expected a whole number, got {text!r}") from None


def listen(port: int | None) -> socket.socket:
    """A socket of this machine alone.

    Args:
        port: None takes a free one.

    Raises:
        UsageError: the port is taken, or not for everybody.
    """
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((HOST, port or 0))
        bound.listen(64)
    except OSError as error:
        bound.close()
        raise UsageError(
            f"--port {port}: cannot be used ({error.strerror or first_line(error)}); leave it out for a free one"
        ) from error
    return bound


def address(bound: socket.socket) -> str:
    """Where the page of a socket is found."""
    return f"http://{HOST}:{bound.getsockname()[1]}/"


def server(session: Session) -> uvicorn.Server:
    """What serves the page of a session; `run(sockets=[...])` does it until it is stopped."""
    return uvicorn.Server(uvicorn.Config(application(session), log_level="warning", lifespan="off", ws="none"))
