"""The status page in a real browser, fed by a real daemon and real agents."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator

import pytest

from helpers.browser import Browser, Page
from helpers.support import PATIENCE, wait_until
from helpers.web import Site, site
from trackd.host.processes import command_of
from trackd_client import Proxy, Tracker
from trackd_client.testing import MakeDaemon

pytestmark = pytest.mark.slow

Open = Callable[..., Page]

#: Names that want to be more than a name, and how the page shows them.
HOSTILE = {
    "<script>hacked = 1</script>": None,
    "<img src=x onerror=hacked=1>": None,
    "</td></tr></table><h1>hacked</h1>": None,
    "__proto__": None,
    "constructor": None,
    "javascript:hacked=1": None,
    "${hacked=1}": None,
    "a\u202egnp.exe": r"a\u{202e}gnp.exe",
    "zero\u200bwidth": r"zero\u{200b}width",
    "x" * 255: None,
    "ü" * 100: None,
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser.running() as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> None:
    """Not judged by processes, as elsewhere: the browser's come and go until the module ends."""


@pytest.fixture
def tcp(make_trackd_daemon: MakeDaemon) -> Site:
    return site(make_trackd_daemon)


@pytest.fixture
def tracker(tcp: Site) -> Iterator[Tracker]:
    with Tracker(tcp.daemon.endpoint, name="edge agent", timeout=PATIENCE) as made:
        yield made


@pytest.fixture
def open_page(browser: Browser, tcp: Site) -> Iterator[Open]:
    """Open pages that the browser may not complain of."""
    browser.complaints.clear()
    pages: list[Page] = []

    def open_(**how: object) -> Page:
        page = Page(browser, tcp.url, **how)  # type: ignore[arg-type] # as Page takes them
        pages.append(page)
        page.wait_for("document.querySelector('#link').innerText === 'live'")
        return page

    yield open_
    for page in pages:
        page.close()
    assert browser.complaints == []


def cells(page: Page, kind: str) -> int:
    """Return how many proxies are drawn as something."""
    return int(page.get(f"document.querySelectorAll('.cells .cell.{kind}').length"))


def names(page: Page) -> list[str]:
    """Return the names in the table, from top to bottom."""
    found = page.get("[...document.querySelectorAll('td.name')].map(cell => cell.textContent)")
    return [str(name) for name in found]


def say(page: Page, words: str) -> None:
    """Wait until the page says so at its top."""
    page.wait_for(f"document.querySelector('#verdict').innerText === {words!r}")


# -- live --------------------------------------------------------------------------------


def test_the_page_shows_what_happens_while_it_happens(open_page: Open, tracker: Tracker) -> None:
    page = open_page()
    say(page, "No proxy is known yet; the first dial brings gossip")
    tracker.track_expected(*(Proxy(f"p{number}", "g", 7) for number in (1, 2, 10)))
    say(page, "3 of 3 proxies have no tunnel; no agent is dialling")
    assert cells(page, "missing") == 3
    assert page.text("#groups h3") == "g"
    lease = tracker.try_acquire()
    assert lease is not None
    say(page, "3 of 3 proxies have no tunnel; 1 agent is dialling")
    assert lease.claim("p10")
    page.wait_for("document.querySelectorAll('.cells .cell.claimed').length === 1")
    assert names(page) == ["p1", "p2", "p10"], "in the order that people expect"
    row = page.text("tr.claimed")
    assert "edge agent" in row
    assert command_of(os.getpid()) in row
    assert str(os.getpid()) in row
    for name in ("p1", "p2"):
        assert tracker.adopt(name)
    say(page, "All 3 proxies have a tunnel")
    assert page.get("document.title") == "3/3 example.com · trackd"
    assert page.get("document.querySelector('#bar-claimed').style.width") == "100%"
    events = page.text("#events")
    assert "p10 claimed by lease 1" in events
    assert "lease 1 granted to session" in events
    lease.release()
    page.wait_for("document.querySelectorAll('.cells .cell.missing').length === 1")
    page.wait_for(
        "document.querySelector('#events').innerText.includes('p10: released by its agent')"
    )
    page.wait_for("Number(document.querySelector('#rate-claims b').dataset?.text) !== null")
    assert page.get("document.querySelector('#rate-grants path.line').getAttribute('d')")


def test_generations_and_what_is_held_without_being_wanted_are_told_apart(
    open_page: Open, tracker: Tracker
) -> None:
    tracker.track_expected(
        Proxy("new1", "g", 2**64 - 1), Proxy("old1", "g", 2**64 - 2), Proxy("old2", "g", 2**64 - 2)
    )
    for name in ("old1", "new1", "stranger"):
        assert tracker.adopt(name)
    page = open_page()
    page.wait_for("document.querySelectorAll('.cells .cell').length === 4")
    assert [cells(page, kind) for kind in ("claimed", "held", "old", "question")] == [1, 1, 2, 1]
    titles = page.get("[...document.querySelectorAll('.generation p')].map(p => p.innerText)")
    assert titles[0] == "generation 18446744073709551615"
    assert titles[1] == "generation 18446744073709551614, old: 1 of 2 held"
    states = page.get("[...document.querySelectorAll('td.state')].map(cell => cell.innerText)")
    assert dict(zip(names(page), states, strict=True)) == {
        "new1": "claimed",
        "old1": "old, held",
        "old2": "old",
        "stranger": "expired, held",
    }


def test_a_newer_generation_whose_proxies_are_all_terminating_is_not_called_old(
    open_page: Open, tracker: Tracker
) -> None:
    tracker.track_expected(
        Proxy("new1", "g", 7, terminating=True),
        Proxy("new2", "g", 7, terminating=True),
        Proxy("kept1", "g", 6),
        Proxy("kept2", "g", 6, terminating=True),
        Proxy("old1", "g", 5),
        Proxy("old2", "g", 5, terminating=True),
    )
    for name in ("new1", "kept1", "old2"):
        assert tracker.adopt(name)
    page = open_page()
    page.wait_for("document.querySelectorAll('.cells .cell').length === 6")
    titles = page.get("[...document.querySelectorAll('.generation p')].map(p => p.innerText)")
    assert titles == [
        "generation 7, terminating: 1 of 2 held",
        "generation 6",
        "generation 5, old: 1 of 2 held",
    ]
    states = page.get("[...document.querySelectorAll('td.state')].map(cell => cell.innerText)")
    assert dict(zip(names(page), states, strict=True)) == {
        "new1": "terminating, held",
        "new2": "terminating",
        "kept1": "claimed",
        "kept2": "terminating",
        "old1": "old",
        "old2": "old, held",
    }


def test_generations_are_told_apart_in_groups_beyond_the_first_hundred_too(
    open_page: Open, tracker: Tracker
) -> None:
    tracker.track_expected(
        *(Proxy(f"p{number}", f"g{number:03d}", 7) for number in range(101)),
        Proxy("older", "g100", 6),
    )
    page = open_page()
    page.wait_for("document.querySelectorAll('.cells .cell').length === 102")
    titles = page.get("[...document.querySelectorAll('.generation p')].map(p => p.innerText)")
    assert titles == ["generation 7"] * 101 + ["generation 6, old: 0 of 1 held"]


def test_a_daemon_that_is_away_is_said_to_be_and_its_return_is_noticed(
    open_page: Open, tcp: Site, tracker: Tracker, browser: Browser
) -> None:
    tracker.track_expected(Proxy("p1"))
    page = open_page()
    say(page, "1 of 1 proxy has no tunnel; no agent is dialling")
    tcp.daemon.kill()
    page.wait_for("document.querySelector('#link').innerText.startsWith('no answer')")
    assert page.get("document.querySelector('main').classList.contains('stale')")
    assert page.get("document.title") == "no answer · trackd"
    assert "p1" in names(page), "what was known last stays to be read"
    tcp.daemon.start()
    page.wait_for("document.querySelector('#link').innerText === 'live'")
    page.wait_for("document.querySelector('#events').innerText.includes('daemon started')")
    assert tracker.adopt("p1")
    say(page, "The only proxy has a tunnel")
    browser.complaints[:] = [
        each for each in browser.complaints if "ERR_CONNECTION_REFUSED" not in str(each)
    ]


def test_the_leader_and_the_hosts_of_a_fleet_are_shown_only_where_there_is_one(
    open_page: Open,
) -> None:
    page = open_page()
    assert page.get("document.querySelector('#fleet').hidden")
    fleet = {
        "leader": "control-1",
        "term": 412,
        "uptime": 7200,
        "failovers": 2,
        "hosts": [
            {"host": "host-1", "connected": True, "sessions": 3},
            {"host": "host-2<b>", "connected": False, "sessions": 0},
        ],
        "candidates": [
            {"host": "control-1", "leads": True},
            {"host": "control-2<b>", "leads": False},
        ],
        "etcd": None,
    }
    page.get(f"showFleet({json.dumps(fleet)}), 0")
    told = page.get("document.querySelector('#leader').innerText")
    assert told == ("control-1 leads, term 412, for 2h 0m; failovers: 2; standing by: control-2<b>")
    rows = "[...document.querySelectorAll('#hosts li')].map(row => row.innerText.split('\\n'))"
    assert page.get(rows) == [["host-2<b>", "silent"], ["host-1", "sessions: 3"]]
    assert page.get("document.querySelector('#etcd').innerText") == ""
    members = [
        {"member": "a:1", "answers": True, "size": 850, "quota": 1000},
        {"member": "b:1", "answers": False, "size": None, "quota": None},
    ]
    alarm = {"member": "a:1", "kind": "NOSPACE"}
    etcd = {"members": members, "alarms": [alarm]}
    page.get(f"showFleet({json.dumps({**fleet, 'candidates': [], 'etcd': etcd})}), 0")
    assert page.get("document.querySelector('#etcd').innerText") == (
        "etcd: 1 of 2 members answer, 85 % of its quota used, NOSPACE at a:1"
    )
    assert page.get("document.querySelector('#leader').innerText").endswith("standing by: none")


def test_a_daemon_that_keeps_no_history_has_no_events_to_show(
    browser: Browser, make_trackd_daemon: MakeDaemon
) -> None:
    page = Page(browser, site(make_trackd_daemon, history=0).url)
    page.wait_for("document.querySelector('#events').innerText.startsWith('No history is kept')")
    page.close()


def test_why_proxies_are_missing_is_said_as_far_as_it_is_known(
    open_page: Open, tcp: Site, tracker: Tracker
) -> None:
    tracker.track_expected(Proxy("p1"), Proxy("p2"))
    assert tracker.adopt("p1")
    page = open_page()
    why = "document.querySelector('#why').innerText"
    page.wait_for(f"{why} === 'No agent asks for a lease at this moment.'")
    for _ in range(20):
        assert tracker.adopt("p1") is None
    met = "Of the last 21 claims, 20 met a proxy that has a tunnel already, most often p1 (20)."
    page.wait_for(f"{why}.includes('{met}')")
    assert tracker.adopt("p2")
    say(page, "All 2 proxies have a tunnel")
    assert page.text("#why") == ""


def test_the_page_says_since_when_tunnels_are_missing_and_for_how_long_all_together(
    open_page: Open, tracker: Tracker
) -> None:
    def wait_for_coverage(pattern: str) -> None:
        total = r"all tunnels together were missing for (\d+m )?\d+s since the daemon started"
        whole = rf"{pattern}; {total}\."
        wait_until(lambda: re.fullmatch(whole, page.text("#coverage")))

    page = open_page()
    say(page, "No proxy is known yet; the first dial brings gossip")
    assert page.text("#coverage") == "", "nothing is wanted"
    tracker.track_expected(Proxy("p1"), Proxy("p2"), Proxy("p3"))
    wait_for_coverage("3 tunnels missing now; not full yet")
    leases = [tracker.adopt(name) for name in ("p1", "p2", "p3")]
    assert all(leases)
    wait_for_coverage("Full now")
    assert leases[0] is not None
    leases[0].release()
    at = r"(\d\d/\d\d/\d{4}, )?\d\d:\d\d:\d\d"  # midnight may be between
    last = rf"1 tunnel missing now; last full (\d+m )?\d+s ago, at {at}"
    wait_for_coverage(last)
    before = tracker.status().missing_seconds
    wait_until(lambda: tracker.status().missing_seconds >= before + 1)

    def count_seconds() -> int:
        found = re.search(r"missing for (?:(\d+)m )?(\d+)s since", page.text("#coverage"))
        assert found is not None
        return 60 * int(found[1] or 0) + int(found[2])

    wait_until(lambda: count_seconds() >= int(before + 1))
    wait_for_coverage(last)
    card = r"2 of 3, missing for (\d+m )?\d+s"
    wait_until(lambda: re.fullmatch(card, page.text("#groups .of")))


def test_an_agent_that_pauses_between_dials_counts_as_dialling(
    open_page: Open, tracker: Tracker
) -> None:
    tracker.track_expected(Proxy("p1"), Proxy("p2"))
    page = open_page()
    say(page, "2 of 2 proxies have no tunnel; no agent is dialling")

    def dial_and_look() -> bool:
        lease = tracker.try_acquire()
        assert lease is not None
        lease.release()
        seen = page.text("#verdict")
        return seen.startswith("2 of 2 proxies have no tunnel; the last dial began")

    wait_until(dial_and_look)


def test_events_of_tunnels_offers_and_addresses_are_sentences(
    browser: Browser, make_trackd_daemon: MakeDaemon
) -> None:
    made = site(make_trackd_daemon, tunnel_timeout=3)
    with Tracker(made.daemon.endpoint, timeout=PATIENCE) as tracker:
        tracker.track_expected(
            Proxy("silent", ttl=3600), Proxy("given", ttl=3600, address="[fd00::1]:3024")
        )
        silent, given = tracker.adopt("silent"), tracker.adopt("given")
        assert silent is not None
        assert given is not None
        assert given.offer()
        tracker.track_expected(Proxy("given", ttl=3600, address=""))
        assert silent.report()  # the last one: it is silent from here on
        wait_until(silent.lost.is_set)
        page = Page(browser, made.url)
        by = f"lease {silent.id} of session {tracker.snapshot().sessions[0].session}"
        expected = [
            "given can be dialled at [fd00::1]:3024",
            f"given is offered to other agents by lease {given.id}",
            "given has no address any more",
            f"{by}, which holds silent, is stale: it reports no sign of life any more",
            f"lease {silent.id}, which held silent: its tunnel gave no sign of life",
        ]
        read = "[...document.querySelectorAll('#events li > span')].map((each) => each.innerText)"
        page.wait_for(f"document.querySelector('#events').innerText.includes({expected[-1]!r})")
        found = [each for each in reversed(page.get(read)) if each in expected]
        assert found == expected
        assert not [each for each in page.get(read) if "{" in each], "no kind is unknown"
        colour = "getComputedStyle(document.querySelector('#events .%s i')).backgroundColor"
        for kind, like in (("lease_stale", "lease_released"), ("proxy_addressed", "proxy_tracked")):
            assert page.get(colour % kind) == page.get(colour % like), kind
        page.close()


# -- finding -----------------------------------------------------------------------------


def test_the_table_is_filtered_and_sorted_by_keyboard(open_page: Open, tracker: Tracker) -> None:
    tracker.track_expected(*(Proxy(f"p{number}", "g", 1) for number in range(150)))
    assert tracker.adopt("p17")
    page = open_page()
    page.wait_for("document.querySelectorAll('#rows tr').length === 100")
    assert names(page)[:3] == ["p0", "p1", "p2"]
    assert page.text("#all") == "Show all 150"
    page.get("document.querySelector('#all').click()")
    assert len(names(page)) == 150

    page.press("/")
    page.type("EDGE agent")
    assert names(page) == ["p17"]
    assert page.text("#shown") == "1 of 150"
    page.press("Escape")
    assert len(names(page)) == 150
    page.type("p14")
    assert names(page) == ["p14", *(f"p14{digit}" for digit in range(10))]
    page.press("Escape")

    page.get("document.querySelector('th.lease button').focus()")
    page.press("Enter")
    assert names(page)[0] == "p17"
    assert page.get("document.querySelector('th.lease').ariaSort") == "ascending"
    page.press("Enter")
    assert names(page)[0] == "p17", "what has no value comes last, either way"
    page.get("document.querySelector('th.name button').click()")
    page.get("document.querySelector('th.name button').click()")
    assert names(page)[:2] == ["p149", "p148"]

    page.get("document.querySelector('#legend li:nth-child(1) button').click()")
    assert names(page) == ["p17"]
    page.get("document.querySelector('.cells .cell[data-name=p3]').click()")
    assert "p3" in names(page)


# -- hostile names -----------------------------------------------------------------------


def test_a_name_is_never_more_than_a_name(browser: Browser, tcp: Site, open_page: Open) -> None:
    with Tracker(tcp.daemon.endpoint, name="<b onclick=hacked=1>agent</b>") as tracker:
        tracker.track_expected(*(Proxy(name, name, 1) for name in HOSTILE))
        for name in HOSTILE:
            assert tracker.adopt(name)
        page = open_page()
        page.wait_for(
            f"document.querySelectorAll('.cells .cell.claimed').length === {len(HOSTILE)}"
        )
        assert set(names(page)) == {shown or name for name, shown in HOSTILE.items()}
        assert page.get("typeof hacked") == "undefined"
        assert page.get("document.querySelectorAll('h1, script, img').length") == 3
        assert "<b onclick=hacked=1>agent</b>" in page.text("tbody")
        assert page.get("document.documentElement.scrollWidth <= innerWidth")
        groups = page.get(
            "[...document.querySelectorAll('#groups h3')].map(each => each.textContent)"
        )
        assert set(groups) == {shown or name for name, shown in HOSTILE.items()}


def test_what_the_policy_forbids_does_not_happen_and_is_complained_of(
    browser: Browser, open_page: Open
) -> None:
    page = open_page()
    for sink in (
        "document.body.innerHTML = '<b>x</b>'",
        "document.createElement('script').textContent = 'hacked = 1'",
        "eval('hacked = 1')",
    ):
        failed = page.get(f"(() => {{ try {{ {sink} }} catch (error) {{ return error.name }} }})()")
        assert failed in {"TypeError", "EvalError"}, sink
    assert page.get("fetch('http://127.0.0.1:1/').catch((error) => error.name)") == "TypeError"
    assert page.get("typeof hacked") == "undefined"
    page.get("new Promise((resolve) => setTimeout(resolve))")  # what is under way has come by then
    assert browser.complaints, "so the other tests would have seen it"
    browser.complaints.clear()


# -- how it looks ------------------------------------------------------------------------

#: The least contrast of a text with what is behind it (WCAG 2, AA), for each text on the page.
PALE = """
(() => {
  const parse = (c) => c.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const colour = parse(getComputedStyle(node).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const node = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || node.closest("script, style, noscript")) continue;
    if (!node.checkVisibility() || node.closest(".skip, .hidden, .new")) continue;
    const [a, b] = [light(parse(getComputedStyle(node).color)), light(ground(node))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) found.push([texts.currentNode.data, contrast.toFixed(2)]);
  }
  return found;
})()
"""


@pytest.mark.parametrize("width", [375, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_it_is_readable_in_both_themes_and_never_wider_than_the_window(
    open_page: Open, tracker: Tracker, *, dark: bool, width: int
) -> None:
    proxies = [
        Proxy(f"proxy-{n:03d}.{'x' * (n % 40)}.example.com", f"g{n % 3}", n % 2) for n in range(90)
    ]
    tracker.track_expected(*proxies)
    for proxy in proxies[:40]:
        assert tracker.adopt(proxy.name)
    page = open_page(dark=dark, width=width)
    page.wait_for("document.querySelectorAll('#rows tr').length === 90")
    ground = page.get("getComputedStyle(document.body).backgroundColor")
    red = int(re.findall(r"\d+", ground)[0])
    assert red < 50 if dark else red > 200
    assert page.get(PALE) == []
    assert page.get("document.documentElement.scrollWidth") == width
    beyond = page.get(
        "[...document.querySelectorAll('main *')].filter((node) =>"
        " node.getBoundingClientRect().right > innerWidth + 1).length"
    )
    assert beyond == 0


def test_a_reader_of_the_screen_hears_what_is_there(open_page: Open, tracker: Tracker) -> None:
    tracker.track_expected(Proxy("p1", "g"), Proxy("p2", "g"))
    assert tracker.adopt("p1")
    for width in (375, 1280):
        page = open_page(width=width)
        page.wait_for("document.querySelectorAll('#rows tr').length === 2")
        nodes = page.call("Accessibility.getFullAXTree")["nodes"]
        told = [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if not node["ignored"]
        ]
        assert ("table", "Proxies") in told
        assert next(name for role, name in told if role == "columnheader").startswith("Proxy")
        assert sum(role == "row" for role, _ in told) == 3
        assert ("image", "1 of 2 held; the table below has each") in told
        assert ("searchbox", "Filter") in told
        assert all(
            name for role, name in told if role in {"button", "link", "searchbox", "heading"}
        )
        assert {"status", "list", "main", "banner"} <= {role for role, _ in told}


@pytest.mark.parametrize("width", [360, 640, 1280])
def test_of_3_000_proxies_the_page_shows_those_first_that_are_missing(
    open_page: Open, tracker: Tracker, width: int
) -> None:
    everything = [f"proxy-{number:04d}.east.prod.example.com" for number in range(3000)]
    for begin in range(0, 3000, 1000):
        tracker.track_expected(*(Proxy(name, "g") for name in everything[begin : begin + 1000]))
    for name in everything[:2980]:
        assert tracker.adopt(name)
    missing = everything[2980:]
    page = open_page(width=width)
    say(page, "20 of 3,000 proxies have no tunnel; no agent is dialling")
    page.wait_for("document.querySelectorAll('.cells .cell').length === 2000")
    assert cells(page, "missing") == 20
    assert names(page)[:20] == missing
    states = page.get("[...document.querySelectorAll('td.state')].map(cell => cell.innerText)")
    assert states == ["missing"] * 20 + ["claimed"] * 80
    assert page.text("#tracked") == "3,000"
    shown = "the first 2,000, missing ones first; trackctl proxies lists all"
    assert page.text("#shown") == shown
    assert page.text("#all") == "Show all 2,000"
    at_top = page.get("""[...document.querySelectorAll('#missing li')].map((each) => {
      const place = each.getBoundingClientRect();
      return [each.innerText, place.left >= 0 && place.right <= innerWidth && place.bottom <= 640];
    })""")
    own = [name.removesuffix(".east.prod.example.com") for name in missing[:10]]
    told = [*(f"{name}…" for name in own), "and 10 more"]
    assert at_top == [[text, True] for text in told], "seen without scrolling, on a phone too"
    page.get("document.querySelector('#missing button').click()")
    assert names(page) == missing[:1]
    assert tracker.adopt(missing[0])
    page.wait_for("document.querySelector('#missing').innerText.endsWith('and 9 more')")
    page.wait_for("!document.querySelector('#missing').innerText.includes('proxy-2980')")
    for name in missing[1:]:
        assert tracker.adopt(name)
    say(page, "All 3,000 proxies have a tunnel")
    assert page.text("#missing") == ""


@pytest.mark.parametrize(
    "tail",
    [
        ".edge-tunnels.eu-central-1.production.infrastructure.example.com",
        "-edge-tunnels-eu-central-1-production-infrastructure-example",
    ],
)
def test_on_a_narrow_screen_a_name_loses_what_it_shares_with_the_others_first(
    open_page: Open, tracker: Tracker, tail: str
) -> None:
    whole = [f"proxy-{number:03d}{tail}" for number in range(30)]
    tracker.track_expected(*map(Proxy, [*whole, "stranger.example.org"]))
    page = open_page(width=360)
    page.wait_for("document.querySelectorAll('#rows tr').length === 31")
    assert names(page) == [*whole, "stranger.example.org"], "copied and searched as a whole"
    own = page.get("[...document.querySelectorAll('td.name bdi')].map(b => b.firstChild.data)")
    assert own == [name.removesuffix(tail) for name in whole] + ["stranger.example.org"]
    seen = page.get("""[...document.querySelectorAll('td.name bdi')].map((bdi) => {
      const range = document.createRange();
      range.selectNodeContents(bdi.firstChild);
      const [part, ...more] = range.getClientRects();
      return more.length === 0 && part.left >= 0 && part.right <= innerWidth;
    })""")
    assert seen == [True] * 31, "each of them in one line, within the window"
    cut = page.get(
        "[...document.querySelectorAll('td.name')]"
        ".filter(each => each.scrollWidth > each.clientWidth).length"
    )
    assert cut == 30, "and what they share is cut"
