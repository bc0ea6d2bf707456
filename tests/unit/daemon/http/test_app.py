"""What HTTP answers, without a socket and without a daemon: a client that a test scripts."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from trackd.http import views
from trackd.http.app import application
from trackd_client.core.event import Event
from trackd_client.errors import DaemonAbsent, TrackdError

PATHS = ("/", "/api/state", "/api/proxies", "/metrics", "/healthz", "/readyz", "/readyz/tunnels")
LARGEST = 2**64 - 1


class Scripted:
    """Stands for the client of the daemon, which has tests of its own.

    Attributes:
        asked: what it was asked for, in order.
        error: what it raises, if anything.
        there, wanted: the tunnels that are there, and those that are wanted.
        leads: whether the daemon leads a fleet.
    """

    def __init__(self, proxies: int = 1) -> None:
        self.asked: list[str] = []
        self.error: TrackdError | None = None
        self.proxies = proxies
        self.there = self.wanted = 1
        self.leads = False

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        if self.error is not None:
            raise self.error

    def status(self) -> dict[str, Any]:
        self._ask("status")
        group = {"group": "g", "generation": LARGEST, "tracked": 1, "desired": 1, "claimed": 1}
        return {
            "revision": 70,
            "tracker_id": b"\x01\xff",
            "groups": [group],
            **({"leader": "control-1"} if self.leads else {}),
            "claimed_desired": self.there,
            "target": self.wanted,
        }

    def fleet(self) -> dict[str, Any]:
        self._ask("fleet")
        return {"leader": "control-1", "hosts": []}

    def explain(self) -> dict[str, Any]:
        self._ask("explain")
        return {"reason": "need", "recent": {"claims": 1}, "missing": ["p"] * 100}

    def metrics(self) -> dict[str, Any]:
        self._ask("metrics")
        grants = ["trackd_grants", "counter", "Grants.", ["reason"], [[["need"], 2], [["x"], 3]]]
        return {"families": [grants, ["trackd_claims", "counter", "Claims.", [], [[[], 4]]]]}

    def log(self, after: int = 0) -> dict[str, Any]:
        self._ask(f"log {after}")
        fields = {"name": "p", "generation": LARGEST, "old_generation": 1}
        return {"events": [Event(70, 1.0, 2.0, "proxy_changed", fields)] * 200, "history": 9}

    def rows(self, of: str) -> Iterator[dict[str, Any]]:
        self._ask(of)
        if of == "sessions":
            for session in (1, 2):
                yield {"session": session, "name": "agent", "command": "run", "uid": 7}
        for number in range(self.proxies if of == "proxies" else 0):
            yield {"name": f"p{number}", "generation": LARGEST, "largest": None, "session": 2}


class Browser:
    """Asks the application as a server would, and checks what no response may lack."""

    def __init__(self, tracker: Scripted, *, any_host: bool = False) -> None:
        self.problem: str | None = None
        self._app = application(tracker, lambda: self.problem, any_host=any_host)

    def ask(
        self, path: str, method: str = "GET", host: str | None = "localhost:9440"
    ) -> tuple[int, dict[str, str], bytes]:
        told: list[Any] = []
        path, _, query = path.partition("?")
        environ = {"REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": query}
        if host is not None:
            environ["HTTP_HOST"] = host
        body = b"".join(self._app(environ, lambda *started: told.extend(started)))  # type: ignore[arg-type] # a server's start_response
        headers = dict(told[1])
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert "base-uri 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cache-Control"] == "no-store"
        if method != "HEAD":
            assert int(headers["Content-Length"]) == len(body)
        return int(told[0].split()[0]), headers, body

    def json(self, path: str) -> Any:
        status, headers, body = self.ask(path)
        assert (status, headers["Content-Type"]) == (200, "application/json")
        return json.loads(body)


@pytest.fixture
def tracker() -> Scripted:
    return Scripted()


@pytest.fixture
def browser(tracker: Scripted) -> Browser:
    return Browser(tracker)


# -- who may ask for what ----------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
def test_a_head_is_told_what_a_get_would_be_without_the_body(browser: Browser, path: str) -> None:
    status, headers, body = browser.ask(path)
    assert status == 200
    assert body
    assert browser.ask(path, "HEAD") == (status, headers, b"")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "FOO"])
@pytest.mark.parametrize("path", PATHS)
def test_nothing_can_be_done_but_looking(browser: Browser, path: str, method: str) -> None:
    status, headers, _ = browser.ask(path, method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    "path", ["", "/x", "//", "/metrics/", "/../", "/api/state/../proxies", "/é"]
)
def test_everything_else_is_not_there(browser: Browser, tracker: Scripted, path: str) -> None:
    for method in ("GET", "HEAD", "POST"):
        assert browser.ask(path, method)[0] == 404
    assert tracker.asked == []


@pytest.mark.parametrize("host", ["evil.example", "evil.example:9440", "", "10.0.0.1"])
@pytest.mark.parametrize("path", [*PATHS, "/x"])
def test_other_names_than_this_host_s_are_refused(
    browser: Browser, tracker: Scripted, path: str, host: str
) -> None:
    status, _, body = browser.ask(path, host=host)
    assert status == 403
    assert b"localhost" in body
    assert tracker.asked == []


@pytest.mark.parametrize("host", ["evil.example", "", None, "localhost"])
def test_on_a_unix_socket_the_host_means_nothing(tracker: Scripted, host: str | None) -> None:
    assert Browser(tracker, any_host=True).ask("/healthz", host=host)[0] == 200


# -- the page ----------------------------------------------------------------------------


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing_but_its_own(
    browser: Browser,
) -> None:
    _, headers, body = browser.ask("/")
    text = body.decode()
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert re.findall(r"""(?:src|href)=["']?([^"'>\s]*)""", text) == [
        "data:,",
        "#proxies",
        "/metrics",
        "/metrics",
        "/healthz",
        "/readyz",
    ]
    assert not re.search(r"url\(|@import|\son\w+=|style=|innerHTML|eval\(", text)
    policy = headers["Content-Security-Policy"]
    for kind, directive in (("style", "style-src"), ("script", "script-src")):
        found = re.findall(rf"<{kind}\b.*?>(.*?)</{kind}>", text, re.DOTALL)
        hashes = [base64.b64encode(hashlib.sha256(each.encode()).digest()) for each in found]
        allowed = " ".join(f"'sha256-{each.decode()}'" for each in hashes)
        assert allowed
        assert f" {directive} {allowed};" in policy
    assert "unsafe" not in policy
    assert "require-trusted-types-for 'script'" in policy


# -- what it is told ---------------------------------------------------------------------


def test_the_state_has_counters_and_the_last_events(browser: Browser, tracker: Scripted) -> None:
    told = browser.json("/api/state")
    counters = {"grants": 5, "claims": 4, "duplicates": 0, "refusals": 0, "releases": 0}
    assert told["counters"] == counters
    assert told["why"] == {"reason": "need", "retry_after": None, "recent": {"claims": 1}}
    assert told["status"]["tracker_id"] == "01ff"
    assert len(told["events"]) == views.MOST_EVENTS
    assert told["events"][0][:3] == [70, 2.0, "proxy_changed"]
    assert "log 20" in tracker.asked


def test_a_fleet_is_in_the_state_where_there_is_one(browser: Browser, tracker: Scripted) -> None:
    assert "fleet" not in browser.json("/api/state")
    assert "fleet" not in tracker.asked


def test_the_state_of_a_leader_has_its_fleet(browser: Browser, tracker: Scripted) -> None:
    tracker.leads = True
    assert browser.json("/api/state")["fleet"]["leader"] == "control-1"


def test_numbers_of_64_bits_keep_their_last_digit(browser: Browser) -> None:
    state = browser.json("/api/state")
    assert state["status"]["groups"][0]["generation"] == "18446744073709551615"
    assert state["events"][0][3]["generation"] == "18446744073709551615"
    (proxy,) = browser.json("/api/proxies")["proxies"]
    assert (proxy["generation"], proxy["largest"]) == ("18446744073709551615", None)


def test_proxies_come_with_the_sessions_that_hold_them(browser: Browser) -> None:
    told = browser.json("/api/proxies")
    assert [row["name"] for row in told["proxies"]] == ["p0"]
    assert told["holders"] == {"2": {"name": "agent", "command": "run", "uid": 7}}
    assert not told["more"]


@pytest.mark.parametrize(("proxies", "more"), [(views.MOST_ROWS, False), (5000, True)])
def test_at_most_2_000_proxies_are_told_and_that_there_are_more(
    proxies: int, *, more: bool
) -> None:
    told = Browser(Scripted(proxies)).json("/api/proxies")
    assert len(told["proxies"]) == 2000
    assert told["more"] is more


def test_metrics_are_made_anew_for_each_reader(browser: Browser, tracker: Scripted) -> None:
    for _ in range(2):
        _, headers, body = browser.ask("/metrics")
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert 'trackd_grants_total{reason="need"} 2.0\n' in body.decode()
    assert tracker.asked == ["metrics"] * 2


# -- a daemon that does not answer ---------------------------------------------------------


@pytest.mark.parametrize("path", ["/api/state", "/api/proxies", "/metrics"])
def test_a_daemon_that_does_not_answer_is_said_to(
    browser: Browser, tracker: Scripted, path: str
) -> None:
    tracker.error = DaemonAbsent("nobody is there")
    status, headers, body = browser.ask(path)
    assert (status, body) == (503, b"nobody is there\n")
    assert headers["Content-Type"].startswith("text/plain")


def test_the_page_and_its_health_need_no_daemon(browser: Browser, tracker: Scripted) -> None:
    tracker.error = DaemonAbsent("nobody is there")
    assert browser.ask("/")[0] == browser.ask("/healthz")[0] == 200
    assert tracker.asked == []


def test_readiness_says_why_not(browser: Browser) -> None:
    assert browser.ask("/readyz")[::2] == (200, b"ready\n")
    browser.problem = "the disk is full"
    assert browser.ask("/readyz")[::2] == (503, b"the disk is full\n")


@pytest.mark.parametrize(
    ("there", "wanted", "query", "status"),
    [
        (6, 6, "", 200),
        (5, 6, "", 503),
        (0, 0, "", 503),
        (0, 0, "?min=0%25", 503),
        (0, 0, "?allow_none=1", 200),
        (0, 0, "?min=90%25&allow_none=1", 200),
        (0, 0, "?min=1&allow_none=1", 503),
        (5, 6, "?allow_none=1", 503),
        (6, 6, "?min=6allow_none=1", 400),
        (6, 6, "?allow_none=yes", 400),
        (5, 6, "?min=5", 200),
        (4, 6, "?min=5", 503),
        (5, 6, "?min=84%25", 503),
        (5, 6, "?min=83%25", 200),
        (5, 6, "?min=83%", 200),
        (6, 6, "?min=x", 400),
        (6, 6, "?max=1", 400),
    ],
)
def test_readiness_of_tunnels_is_as_the_query_says(
    browser: Browser, tracker: Scripted, there: int, wanted: int, query: str, status: int
) -> None:
    tracker.there, tracker.wanted = there, wanted
    got, _, body = browser.ask(f"/readyz/tunnels{query}")
    assert got == status
    if status == 400:
        assert body == b"the query may be min=N or min=P%, and allow_none=1 after &\n"
    else:
        assert body == f"{there} of {wanted} wanted tunnels are there\n".encode()


# -- shared by all viewers -----------------------------------------------------------------


class Clock:
    """A clock that a test moves."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def made_in(seconds: float, clock: Clock, made: list[float]) -> Callable[[], bytes]:
    """Return what makes a view, taking so long each time."""

    def make() -> bytes:
        made.append(clock.now)
        clock.now += seconds
        return str(len(made)).encode()

    return make


def test_a_view_is_made_once_for_all_who_look_within_a_moment(clock: Clock) -> None:
    made: list[float] = []
    view = views.Shared(made_in(0.0, clock, made), clock)
    assert {view.get() for _ in range(100)} == {b"1"}
    clock.now += views.MOMENT
    assert {view.get() for _ in range(100)} == {b"2"}


def test_a_view_that_takes_long_to_make_is_made_less_often(clock: Clock) -> None:
    made: list[float] = []
    view = views.Shared(made_in(0.2, clock, made), clock)
    while clock.now < 200:
        view.get()
        clock.now += 0.01
    assert len(made) * 0.2 < 100 / views.SHARE


def test_a_failure_is_shared_too_and_passes(clock: Clock) -> None:
    calls = []

    def make() -> bytes:
        calls.append(clock.now)
        if len(calls) == 1:
            raise DaemonAbsent("nobody is there")
        return b"well"

    view = views.Shared(make, clock)
    for _ in range(3):
        with pytest.raises(DaemonAbsent):
            view.get()
    assert len(calls) == 1
    clock.now += views.MOMENT
    assert view.get() == b"well"
