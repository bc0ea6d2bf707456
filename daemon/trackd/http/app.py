"""What the listener answers: a page, its data, metrics, health. Read-only, and strict.

Each path is one function that takes the query and returns a `Reply`. Whatever is not asked for by
GET or HEAD, by a name of this host, on one of these paths, is refused here.
"""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from importlib import resources
from typing import TYPE_CHECKING, Final, NamedTuple

from trackd.config.addresses import is_local
from trackd.http import views
from trackd_client import metrics
from trackd_client.errors import TrackdError

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

_TEXT: Final = "text/plain; charset=utf-8"
_JSON: Final = "application/json"
_METHODS: Final = "GET, HEAD"

#: Sent with everything. Nothing is kept by a browser, guessed at, framed, or read by another site.
_HEADERS: Final = (
    ("Cache-Control", "no-store"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
)
#: What is never right, whatever else a response holds.
_NOTHING: Final = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
#: The files that belong to the page, as it names them.
_OWN: Final = re.compile(
    r'<link rel="stylesheet" href="(?P<css>\w+\.css)">|<script src="(?P<js>\w+\.js)"></script>'
)
#: The query of `/readyz/tunnels`: how many tunnels are enough, or which share of the wanted ones,
#: and whether it is enough when none is wanted.
_MIN: Final = re.compile(
    r"(?:min=(?P<number>\d{1,9})(?P<percent>%|%25)?(?:&|$))?(?P<none>allow_none=1)?", re.ASCII
)


class Reply(NamedTuple):
    """What a path answers."""

    body: bytes
    content_type: str = _TEXT
    status: HTTPStatus = HTTPStatus.OK
    policy: str = _NOTHING
    headers: tuple[tuple[str, str], ...] = ()


def application(
    tracker: views.Asked,
    ready: Callable[[], str | None],
    *,
    any_host: bool,
    pause: Callable[[float], object] = time.sleep,
) -> WSGIApplication:
    """Return the WSGI application.

    Args:
        tracker: a client of the daemon.
        ready: makes a request the whole way through the daemon and its store; returns why that
            did not work, or None.
        any_host: whether the Host header may be anything, as on a unix socket, which no browser
            can be led to.
        pause: waits for so many seconds, or until the listener stops.
    """
    pace = views.Pace()
    readable = views.Limited(lambda: metrics.exposition(tracker.metrics()["families"]).encode())
    readiness = views.Limited(ready)
    status = views.Limited(tracker.status)
    state = views.Shared(lambda: views.state(tracker))
    proxies = views.Shared(lambda: views.proxies(tracker))
    page = _page()

    def show_readiness(_query: str) -> Reply:
        problem = readiness.get()
        if problem is None:
            return Reply(b"ready\n")
        return Reply(f"{problem}\n".encode(), status=HTTPStatus.SERVICE_UNAVAILABLE)

    def show_coverage(query: str) -> Reply:
        least = _MIN.fullmatch(query)
        if least is None:
            usage = "the query may be min=N or min=P%, and allow_none=1 after &"
            return _refusal(HTTPStatus.BAD_REQUEST, usage)
        counts = status.get()
        there = counts["claimed_desired"] + counts.get("claimed_terminating", 0)
        wanted = counts["target"]
        needed = float(least["number"] or 100)
        if least["number"] is None or least["percent"]:
            needed *= wanted / 100
        text = f"{there} of {wanted} wanted tunnels are there\n".encode()
        if there >= needed and (wanted or least["none"]):
            return Reply(text)
        return Reply(text, status=HTTPStatus.SERVICE_UNAVAILABLE)

    paths: dict[str, Callable[[str], Reply]] = {
        "/": lambda _query: page,
        "/api/state": lambda _query: Reply(state.get(), _JSON),
        "/api/proxies": lambda _query: Reply(proxies.get(), _JSON),
        "/metrics": lambda _query: Reply(readable.get(), metrics.CONTENT_TYPE),
        "/healthz": lambda _query: Reply(b"ok\n"),
        "/readyz": show_readiness,
        "/readyz/tunnels": show_coverage,
    }

    def answer(environ: WSGIEnvironment) -> Reply:
        # A browser always says Host, so that only a page of another site can be meant by a wrong
        # one. Health checks of HTTP/1.0 have none.
        if not any_host and "HTTP_HOST" in environ and not is_local(environ["HTTP_HOST"]):
            return _refusal(
                HTTPStatus.FORBIDDEN,
                "ask for localhost, 127.0.0.1 or [::1]: no other name is served",
            )
        path = paths.get(environ.get("PATH_INFO", ""))
        if path is None:
            return _refusal(HTTPStatus.NOT_FOUND, f"there is no such thing; try {', '.join(paths)}")
        if environ["REQUEST_METHOD"] not in {"GET", "HEAD"}:
            refused = _refusal(HTTPStatus.METHOD_NOT_ALLOWED, "nothing can be changed here")
            return refused._replace(headers=(("Allow", _METHODS),))
        try:
            return path(environ.get("QUERY_STRING", ""))
        except TrackdError as error:
            return _refusal(HTTPStatus.SERVICE_UNAVAILABLE, str(error))

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if wait := pace.take():
            pause(wait)
        reply = answer(environ)
        start_response(
            f"{reply.status.value} {reply.status.phrase}",
            [
                ("Content-Type", reply.content_type),
                ("Content-Length", str(len(reply.body))),
                ("Content-Security-Policy", reply.policy),
                *_HEADERS,
                *reply.headers,
            ],
        )
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [reply.body]

    return app


def _refusal(status: HTTPStatus, sentence: str) -> Reply:
    return Reply(f"{sentence}\n".encode(), status=status)


def _page() -> Reply:
    """Return the page as one file, with a policy that lets nothing run but what is in it."""
    files = resources.files("trackd.http")
    digests: dict[str, list[str]] = {"style": [], "script": []}

    def inline(found: re.Match[str]) -> str:
        text = (files / (found["css"] or found["js"])).read_text("utf-8")
        kind = "style" if found["css"] else "script"
        assert f"</{kind}" not in text
        digests[kind].append(f"'{_digest(text)}'")
        return f"<{kind}>{text}</{kind}>"

    text = _OWN.sub(inline, (files / "page.html").read_text("utf-8"))
    policy = (
        f"{_NOTHING}; script-src {' '.join(digests['script'])}; "
        f"style-src {' '.join(digests['style'])}; connect-src 'self'; img-src data:; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )
    return Reply(text.encode(), "text/html; charset=utf-8", policy=policy)


def _digest(text: str) -> str:
    """Return what a policy calls a script or style that it lets run."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
