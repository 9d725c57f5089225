"""A page and a JSON API over a folder of embeddings, on this machine alone unless another host is asked for."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Awaitable, Callable
from html import escape
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from clipkit.embedding.find import Finder, Hit, Kind
from clipkit.embedding.gallery import POLICY, STYLE, cards
from clipkit.embedding.store import Store

MOST = 200  # results of one question
MOST_BYTES = 16 << 20  # of a picture sent here
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_CUT = "the question is longer than the context of the model and was cut"
_OTHER = "; ask for the address that it printed, or serve with --host and that name"
_POLICY = POLICY + "; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"


def application(finder: Finder, *, hosts: list[str]) -> FastAPI:
    """The web application.

    ``GET /?q=WORDS`` is the page; ``GET /api/search?q=WORDS&k=10&of=images`` and ``POST /api/search`` (a picture as body)
    answer ``{"hits": [{"score", "row", "key", "caption", "image_path"}]}``, with a ``note`` where the words were cut.

    Args:
        finder: What is asked.
        hosts: Names under which it answers: a page of another site cannot reach it under a name of its own. ``*`` stands for every
            number (127.0.0.1, ::1), which no site can have as its name.
    """
    app = FastAPI(title="clipkit search", docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(RequestValidationError)
    def refuse(request: Request, error: RequestValidationError) -> JSONResponse:
        found = "; ".join(f"{problem['loc'][-1]}: {problem['msg']}" for problem in error.errors())
        return JSONResponse({"error": found}, 400)

    @app.get("/")
    def home(q: str = "", k: int = 24, of: str = "images") -> HTMLResponse:
        try:
            hits = finder.words([q], _count(k), _kind(of))[0] if q.strip() else []
            return HTMLResponse(_page(finder.store, q, of, hits, _CUT if finder.over_long(q) else ""))
        except ValueError as error:
            return HTMLResponse(_page(finder.store, q, "images", [], str(error)), 400)

    @app.get("/api/search")
    def by_words(q: str, k: int = 10, of: str = "images") -> JSONResponse:
        return _answer(lambda: finder.words([q], _count(k), _kind(of))[0], _CUT if finder.over_long(q) else "")

    @app.post("/api/search")
    async def by_picture(request: Request, k: int = 10, of: str = "images") -> JSONResponse:
        data = bytearray()
        async for chunk in request.stream():
            data += chunk
            if len(data) > MOST_BYTES:
                return JSONResponse({"error": f"a picture of more than {MOST_BYTES >> 20} MiB"}, 413)
        return await run_in_threadpool(_answer, lambda: finder.picture(bytes(data), _count(k), _kind(of)))

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        name = request.url.hostname or ""
        asked = name in hosts or ("*" in hosts and _is_number(name))
        response = (
            await call_next(request) if asked else PlainTextResponse(f"{name} is not this server's name{_OTHER}", 400)
        )
        response.headers["Content-Security-Policy"] = _POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    return app


def serve(finder: Finder, *, host: str, port: int) -> None:
    """Answer until interrupted.

    Raises:
        ValueError: If it cannot listen there.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise ValueError(
            f"--host {host} --port {port}: cannot listen there ({error.strerror}); take another"
        ) from error
    app = application(finder, hosts=names_of(host))
    shown = f"[{host}]" if ":" in host else host
    print(f"serving {finder.store.folder} on http://{shown}:{listening.getsockname()[1]}/ (Ctrl-C ends)", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])


def names_of(host: str) -> list[str]:
    """Names of this machine for those who reach it at ``host``.

    >>> names_of("127.0.0.1")
    ['127.0.0.1', '127.0.0.1', 'localhost', '::1']
    """
    everywhere = ["*", socket.gethostname().lower(), socket.getfqdn().lower()]
    return [*(everywhere if host in ("0.0.0.0", "::") else [host.lower()]), *LOOPBACK]


def _answer(find: Callable[[], list[Hit]], note: str = "") -> JSONResponse:
    try:
        return JSONResponse({"hits": [_plain(hit) for hit in find()]} | ({"note": note} if note else {}))
    except ValueError as error:
        return JSONResponse({"error": str(error)}, 400)


def _is_number(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _plain(hit: Hit) -> dict[str, Any]:
    shown = hit.shown
    return {
        "score": hit.score,
        "row": hit.row,
        "key": shown.key,
        "caption": shown.caption,
        "image_path": shown.image_path,
    }


def _count(k: int) -> int:
    if not 1 <= k <= MOST:
        raise ValueError(f"k={k}: 1 to {MOST} results")
    return k


def _kind(of: str) -> Kind:
    if of == "images":
        return "images"
    if of == "texts":
        return "texts"
    raise ValueError(f"of={of!r}: images or texts")


def _page(store: Store, question: str, of: str, hits: list[Hit], note: str = "") -> str:
    made = store.manifest
    options = "".join(
        f"<option value={kind}{' selected' if kind == of else ''}>{kind}</option>" for kind in ("images", "texts")
    )
    below = (f"<p role=alert>{escape(note)}</p>" if note else "") + (cards(hits) if hits else "")
    count = f"{made['images']:,} pictures, {made['captions']:,} captions, embedded by {escape(str(made['model']))}"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>clipkit search</title><style>{STYLE}</style></head><body><h1>clipkit search</h1><p>{count}</p>"
        '<form method="get" action="/" role="search"><input type="search" name="q" aria-label="What to find" '
        f'placeholder="a red bicycle" value="{escape(question)}"><select name="of" aria-label="Kind of results">{options}'
        f"</select><button>Search</button></form>{below}</body></html>\n"
    )
