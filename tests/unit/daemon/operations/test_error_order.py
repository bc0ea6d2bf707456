"""Which error wins when several things are wrong with a request, for each operation.

Each operation has a list of what can be wrong, in the order in which the daemon looks: of several
things the first one is the outcome. Nothing here knows how the daemon checks a request.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import pytest

from helpers.protocol_document import table
from helpers.writer import AgentOf, Clock, Desk, Host
from trackd.actors.messages import Reload, ReloadOutcome
from trackd.operations import fleet
from trackd.sessions.identity import Peer
from trackd_client.errors import Code
from trackd_client.wire.errors import ProtocolError

ADMINS = 2002


class Case:
    """A request and its peer, to be made wrong; until then the daemon serves it."""

    def __init__(self, desk: Desk, op: str, fields: Mapping[str, Any], *, opened: bool) -> None:
        self.desk = desk
        self.agent = AgentOf(5, uid=54321)
        self.agent.peer = self.agent.peer._replace(gid=ADMINS)
        self.peer: Peer | None = self.agent.peer
        self.problem: ProtocolError | None = None
        if opened:
            self.agent.ask(desk, "open")
        self.body = self.agent.body(op, **fields)
        self.seq: int = self.body["seq"]

    def be(self, **changes: Any) -> None:
        """Let the kernel name somebody else as the peer."""
        if self.peer is not None:
            self.peer = self.peer._replace(**changes)

    def configure(self, **settings: Any) -> None:
        """Let the daemon have other settings from now on."""
        actor = self.desk.actor
        config = dataclasses.replace(actor._config, **settings)
        actor.on_receive(Reload(config, actor._roles, ReloadOutcome()))

    def reply(self, wrong: Iterable[Wrong]) -> dict[str, Any] | None:
        """Make things wrong, what lies in the past first; ask, and return the reply."""
        for each in sorted(wrong, key=lambda each: each.step):
            each.change(self)
        return self.desk.ask(self.body, self.peer, problem=self.problem)


class Wrong(NamedTuple):
    """One thing that can be wrong with a request, and the outcome when nothing else is.

    Attributes:
        change: makes it wrong.
        code: of the error; "" when there is no error, and None when there is no reply.
        says: is in the error's sentence.
        step: the order in which several things are made wrong.
        excludes: the names of groups of things that cannot be so at once, with spaces between.
    """

    change: Callable[[Case], object]
    code: str | None
    says: str = ""
    step: int = 9
    excludes: str = ""

    def is_outcome(self, reply: dict[str, Any] | None) -> bool:
        """Return whether a reply is the one that this earns."""
        if reply is None or self.code is None:
            return reply is None and self.code is None
        return reply.get("error", "") == self.code and self.says in reply.get("message", "")


def invalid(says: str, excludes: str = "", **values: Any) -> Wrong:
    """Return what is invalid in fields of the request."""
    return Wrong(
        lambda case: case.body.update(values), Code.INVALID_ARGUMENT, says, excludes=excludes
    )


def limited(says: str, **settings: int) -> Wrong:
    """Return that a request is over a limit, which is lowered for that."""
    return Wrong(lambda case: case.configure(**settings), Code.LIMIT_EXCEEDED, says)


def over_quota(quota: str) -> Wrong:
    """Return that a user is over a quota, which is lowered for that."""
    return Wrong(lambda case: case.configure(**{quota: 0}), Code.QUOTA_EXCEEDED, quota)


# what lies in the past


def send_before(case: Case) -> None:
    case.desk.ask(case.body, case.agent.peer)


def leave_nothing_to_grant(case: Case) -> None:
    while case.agent.ask(case.desk, "try_acquire", done=[1, case.seq - 1])["lease"] is not None:
        pass


def wait_in_vain(case: Case, **settings: int) -> None:
    leave_nothing_to_grant(case)
    case.configure(**settings)


def park_before(case: Case) -> None:
    leave_nothing_to_grant(case)
    parked = case.agent.body("acquire", seq=case.seq)
    assert case.desk.ask(parked, case.agent.peer) is None


def watch_before(case: Case) -> None:
    watch = case.agent.body("watch_session", seq=case.seq)
    assert case.desk.ask(watch, case.agent.peer) is None


def be_done_before(case: Case) -> None:
    case.agent.ask(case.desk, "heartbeat", done=[case.seq, case.seq])


def name_a_lease_of_another(case: Case) -> None:
    other = AgentOf(6)
    other.ask(case.desk, "open")
    case.body["lease"] = other.ask(case.desk, "adopt", principals=["another"])["lease"]


def name_a_lease_that_expired(case: Case) -> None:
    case.body["lease"] = case.agent.ask(case.desk, "try_acquire")["lease"]
    clock = case.desk.actor._clock
    assert isinstance(clock, Clock)
    clock.now += 30.001
    case.desk.sweep()


def in_row(index: int, field: str, value: object) -> Wrong:
    """Return what is invalid in a row of gossip."""

    def change(case: Case) -> None:
        case.body["proxies"][index][["name", "group", "generation", "ttl"].index(field)] = value

    return Wrong(change, Code.INVALID_ARGUMENT, f"proxies[{index}].{field}", step=7)


def let_admins_set_the_count(case: Case) -> None:
    case.be(gid=1)
    case.configure(count_role="admin")


# what can be wrong, in the order in which the daemon looks

STALE = Wrong(lambda case: case.body.update(deadline=1.0), None, excludes="deadline")
DEADLINE = invalid("deadline", "deadline", deadline="soon")
WISH = Wrong(
    lambda case: case.body.update(deadline=1.0, reply_if_stale="yes"),
    Code.INVALID_ARGUMENT,
    "reply_if_stale",
    excludes="deadline",
)
STORE = Wrong(lambda case: case.desk.fail_store("disk full"), Code.UNAVAILABLE, "disk full")
TOKEN = invalid("token", "token", token=b"short")
ANOTHER_USER = Wrong(lambda case: case.be(uid=54322), Code.PERMISSION_DENIED, "to another user")
DONE = invalid("done", done=[2, 1])
ROLE = Wrong(lambda case: case.be(gid=1), Code.PERMISSION_DENIED, "the role admin")

ENVELOPE = {
    "the frame": Wrong(
        lambda case: setattr(case, "problem", ProtocolError(Code.MALFORMED, "not a map")),
        Code.MALFORMED,
        "not a map",
    ),
    "the operation": Wrong(
        lambda case: case.body.update(op="fly"), Code.UNKNOWN_OPERATION, "'fly'"
    ),
    "the namespace": invalid("namespace", namespace="b"),
    "the peer": Wrong(
        lambda case: setattr(case, "peer", None), Code.PERMISSION_DENIED, "the kernel"
    ),
}
SESSION = {
    "the token": TOKEN,
    "an unknown session": Wrong(
        lambda case: case.body.update(token=bytes(16)),
        Code.SESSION_UNKNOWN,
        "does not know",
        excludes="token",
    ),
    "another user": ANOTHER_USER,
    "an ended session": Wrong(
        lambda case: case.agent.ask(case.desk, "close"), Code.SESSION_ENDED, step=3
    ),
    "the field done": DONE,
    "done": Wrong(be_done_before, None, step=1, excludes="past"),
    "watching": Wrong(watch_before, None, step=1, excludes="past"),
    "parked": Wrong(park_before, None, step=1, excludes="past"),
}
REMEMBERED = {"remembered": Wrong(send_before, "", step=1, excludes="past")}
TIME = {"the deadline": DEADLINE, "stale": STALE, "a wish": WISH}
ROOM = {
    "no room": limited("the session has", max_outstanding=0),
    "the quota of replies": over_quota("quota_reply_bytes"),
    "the replies of all": limited("the daemon keeps", max_reply_bytes=0),
}
PRINCIPALS = {
    "no array of principals": invalid("principals must be", "principals", principals="p1"),
    "too many principals": limited("principals; 0", max_principals=0),
    "a principal": invalid("a principal", "principals", principals=["p1", ""]),
}
LEASE = {
    "the lease": invalid("lease must be", "lease", lease=0),
    "a lease of another": Wrong(
        name_a_lease_of_another, Code.NOT_OWNER, "belongs to another", step=2, excludes="lease"
    ),
}
GRANT = {
    "too many leases": limited("leases are held", max_leases=0),
    "the quota of leases": over_quota("quota_leases"),
}
NAMES = {"the names": invalid("names must be", names="history")}
NO_FLEET = Wrong(
    lambda case: setattr(case.desk.actor._runtime, "fleet", None),
    Code.INVALID_ARGUMENT,
    "belongs to no fleet",
)


def order(
    wrong: Mapping[str, Wrong], *, changes: bool = True, late: bool = False, admin: bool = False
) -> dict[str, Wrong]:
    """Return what can be wrong with a request of a session, in the order of the daemon.

    Args:
        wrong: with this operation.
        changes: whether it can change the state.
        late: whether it runs however late it is.
        admin: whether it is for admins.
    """
    return {
        **ENVELOPE,
        **SESSION,
        **(REMEMBERED if changes else {}),
        **({} if late else TIME),
        **({"the role": ROLE} if admin else {}),
        **({"the store": STORE} if changes else {}),
        **(ROOM if changes and not late else {}),
        **wrong,
    }


def without(wrong: Mapping[str, Wrong], *names: str) -> dict[str, Wrong]:
    """Return what can be wrong without some of it."""
    return {name: each for name, each in wrong.items() if name not in names}


#: The fields of a request of each operation that is served; none but these.
FIELDS: dict[str, dict[str, Any]] = {
    "drop_host": {"host": "host-1"},
    "yield_lead": {"term": 411},
    "snapshot": {"of": "proxies"},
    "track_expected": {"proxies": [["p1", "", 1, None], ["p2", "", 1, None]]},
    "set_connection_count": {"count": 3},
    "is_claimed": {"principals": ["p1"]},
    "claim": {"lease": 99, "principals": ["p1"]},
    "release": {"lease": 99},
    "retire": {"lease": 99},
    "report": {"reports": [[99, 0.25]]},
    "offer": {"lease": 99},
    "adopt": {"principals": ["p1"]},
    "cancel": {"target": 99},
    "force_release": {"lease": 99},
    "end_session": {"session": 9},
    "forget": {"name": "p1"},
    "forget, a group": {"group": "g"},
}
#: What can be wrong with a request of each operation. After a comma: a kind of its requests.
ORDERS: dict[str, dict[str, Wrong]] = {
    "hello": ENVELOPE,
    "ping": ENVELOPE,
    "status": ENVELOPE,
    "explain": {**ENVELOPE, "the name": invalid("name", name=7)},
    "snapshot": {
        **ENVELOPE,
        "the table": invalid("of must be", of="dogs"),
        "no cursor": invalid("cursor must come", "cursor", cursor=[1]),
        "the cursor": invalid("cursor must be an integer", "cursor", cursor=[1, -1]),
        "the limit": invalid("limit", limit=1001),
        "a cursor of nothing": invalid("belongs to no listing", "cursor", cursor=[9, 0]),
    },
    "log": {
        **ENVELOPE,
        "where it begins": invalid("after", after=-1),
        "the older ones": invalid("older", older=1),
        "the limit": invalid("limit", limit=0),
    },
    "metrics": {**ENVELOPE, **NAMES},
    "config": {**ENVELOPE, **NAMES},
    "fleet": {**ENVELOPE, "no fleet": NO_FLEET},
    "open": {
        **ENVELOPE,
        "the token": TOKEN,
        **TIME,
        "the store": STORE,
        "the cluster": Wrong(
            lambda case: case.body.update(cluster="other.example"),
            Code.WRONG_CLUSTER,
            "'other.example'",
        ),
        "the name": invalid("name must be text", name=7),
        "the version": invalid("version", version=7),
        "no map of labels": invalid("labels must be a map", "labels", labels=[]),
        "17 labels": Wrong(
            lambda case: case.body.update(labels={str(i): 1 for i in range(17)}),
            Code.LIMIT_EXCEEDED,
            "17 labels",
            excludes="labels",
        ),
        "the name of a label": invalid("a label's name", "labels", labels={"": 1}),
        "a label": invalid("label k", "labels", labels={"k": 1}),
        "too many sessions": limited("the daemon has 0 sessions", max_sessions=0),
        "the quota of sessions": over_quota("quota_sessions"),
        "the process": Wrong(lambda case: case.be(pid=2**22 + 1), Code.SESSION_ENDED, "process"),
    },
    "open, again": without(
        order(
            {
                "another process": Wrong(
                    lambda case: case.be(pid=7), Code.PERMISSION_DENIED, "the process 0"
                ),
                "fields, which nobody reads": Wrong(
                    lambda case: case.body.update(name=7, version=7, labels=7, cluster="other"), ""
                ),
            },
            changes=False,
        ),
        "an unknown session",
    ),
    "close": {
        **without(order({}, late=True), "remembered"),
        "an unknown session": SESSION["an unknown session"]._replace(code="", says=""),
        "an ended session": SESSION["an ended session"]._replace(code="", says=""),
    },
    "heartbeat": order({}, changes=False),
    "report": order(
        {
            "no array of reports": invalid("reports must be", "reports", reports=7),
            "too many reports": Wrong(
                lambda case: case.body.update(reports=[[1, None]] * 10_001),
                Code.LIMIT_EXCEEDED,
                "10001 reports",
                excludes="reports",
            ),
            "a report": invalid("reports[1] must be", "reports", reports=[[1, None], [1]]),
            "its lease": invalid("reports[0][0]", "reports", reports=[[0, None]]),
            "its time": invalid("reports[0][1]", "reports", reports=[[1, 60.5]]),
        },
        changes=False,
    ),
    "watch_session": order({}, changes=False),
    "track_expected": order(
        {
            "no array of proxies": invalid("proxies must be", proxies={}),
            "too many proxies": limited("proxies in one message", max_proxies=0),
            "a short row": Wrong(
                lambda case: case.body["proxies"][0].pop(),
                Code.INVALID_ARGUMENT,
                "proxies[0] must be",
                step=8,
            ),
            "the name of a row": in_row(0, "name", 7),
            "the group of a row": in_row(0, "group", 7),
            "the generation of a row": in_row(0, "generation", -1),
            "the ttl of a row": in_row(0, "ttl", "long"),
            "a row after it": in_row(1, "name", ""),
            "too many tracked": limited("proxies are tracked", max_tracked=0),
        }
    ),
    "set_connection_count": order(
        {
            "the count": invalid("count", count=2.0),
            "who may set it": Wrong(
                let_admins_set_the_count,
                Code.PERMISSION_DENIED,
                "setting the connection count",
            ),
        }
    ),
    "is_claimed": order(PRINCIPALS, changes=False),
    "try_acquire": order(GRANT),
    "acquire": order(
        {
            **GRANT,
            "too many wait": Wrong(
                lambda case: wait_in_vain(case, max_waiters=0),
                Code.LIMIT_EXCEEDED,
                "requests wait",
                step=2,
            ),
            "the quota of waiters": Wrong(
                lambda case: wait_in_vain(case, quota_waiters=0),
                Code.QUOTA_EXCEEDED,
                "quota_waiters",
                step=2,
            ),
        }
    ),
    "claim": order(
        {
            **LEASE,
            "an expired lease": Wrong(
                name_a_lease_that_expired,
                Code.LEASE_EXPIRED,
                "was taken back",
                step=2,
                excludes="lease past",
            ),
            **PRINCIPALS,
        }
    ),
    "retire": order(LEASE),
    "offer": order(LEASE),
    "release": order(
        {
            "the lease": LEASE["the lease"],
            "the outcome": invalid("failed must be one of", failed="tired"),
            "the time": invalid("retry_after must be from", retry_after=61),
            **without(LEASE, "the lease"),
        },
        late=True,
    ),
    "adopt": order({**PRINCIPALS, "too many leases": GRANT["too many leases"]}),
    "cancel": order({"the target": invalid("target", target=0)}, late=True),
    "force_release": order({"the lease": LEASE["the lease"]}, admin=True),
    "end_session": order({"the session": invalid("session", session=0)}, admin=True),
    "forget": order(
        {
            "a generation without a group": invalid("needs a group", generation=-1),
            "the name": invalid("name must be text", name=7),
        },
        admin=True,
    ),
    "forget, a group": order(
        {
            "a name beside the group": invalid("name and group", name=7),
            "the group": invalid("group must be text", group=7),
            "the generation": invalid("generation must be", generation=-1),
        },
        admin=True,
    ),
    "resume": order({}, admin=True),
    "reload": order({}, changes=False, admin=True),
    "drop_host": order(
        {"the host": invalid("host must be text", host=7), "no fleet": NO_FLEET}, admin=True
    ),
    "yield_lead": order(
        {"the term": invalid("term", term=0), "no fleet": NO_FLEET}, changes=False, admin=True
    ),
}
#: What the daemon does not look at in a request that it serves.
IGNORED = {
    **{
        op: [TOKEN, DONE, WISH, ROLE, STORE, ROOM["no room"]]
        for op in (
            *("hello", "ping", "status", "explain", "snapshot", "log", "metrics", "config"),
            "fleet",
        )
    },
    "open": [DONE, *ROOM.values()],
    **{
        op: [ROLE, STORE, *ROOM.values()]
        for op in ("heartbeat", "report", "watch_session", "is_claimed")
    },
    "open, again": [ROLE, STORE, *ROOM.values()],
    "adopt": [GRANT["the quota of leases"]],
    **{op: [STORE, *ROOM.values()] for op in ("reload", "yield_lead")},
    **{op: [WISH, ROLE, *ROOM.values()] for op in ("close", "release", "cancel")},
}


@pytest.fixture
def make_case(clock: Clock, host: Host) -> Iterator[Callable[[str], Case]]:
    """Makes a request of an operation, for a daemon of its own."""
    desks = []

    def make(name: str) -> Case:
        desk = Desk(None, clock, admin_groups=(ADMINS,), heartbeat_ttl=3600.0)
        desks.append(desk)
        if name in fleet.OPERATIONS:
            desk.lead()
        fields = copy.deepcopy(FIELDS.get(name, {}))
        return Case(desk, name.partition(",")[0], fields, opened=name != "open")

    yield make
    for desk in desks:
        desk.kill()


MakeCase = Callable[[str], Case]


def served(name: str) -> Wrong:
    """Return the outcome of a request with which nothing is wrong."""
    return Wrong(lambda _: None, None if name == "watch_session" else "")


def test_there_is_an_order_for_each_operation_of_the_document() -> None:
    documented = [re.sub(r"\[`(\w+)`\].*", r"\1", row[0]) for row in table("Operations")]
    assert list(dict.fromkeys(name.partition(",")[0] for name in ORDERS)) == documented


@pytest.mark.parametrize("name", ORDERS)
def test_a_request_with_which_nothing_is_wrong_is_served(make_case: MakeCase, name: str) -> None:
    assert served(name).is_outcome(make_case(name).reply([]))


@pytest.mark.parametrize("name", IGNORED)
def test_what_an_operation_does_not_look_at_is_never_the_outcome(
    make_case: MakeCase, name: str
) -> None:
    reply = make_case(name).reply(IGNORED[name])
    assert served(name).is_outcome(reply), reply


@pytest.mark.parametrize("name", ORDERS)
def test_of_all_that_is_wrong_the_first_is_the_outcome(make_case: MakeCase, name: str) -> None:
    names = list(ORDERS[name])
    for i, first in enumerate(names):
        for later in (names[i + 1 :], names[:i:-1]):  # where two exclude each other: either
            reply = make_case(name).reply(together(ORDERS[name], [first, *later]))
            assert ORDERS[name][first].is_outcome(reply), f"{first} before {later}: {reply}"


def together(order: Mapping[str, Wrong], names: list[str]) -> list[Wrong]:
    """Return as much of it as can be wrong at once, what comes first being preferred."""
    found: list[Wrong] = []
    taken: set[str] = set()
    for wrong in (order[name] for name in names):
        groups = set(wrong.excludes.split())
        if not groups & taken:
            found.append(wrong)
            taken |= groups
    return found


@pytest.mark.parametrize("name", ["forget", "open"])
def test_of_two_things_that_are_wrong_the_first_is_the_outcome(
    make_case: MakeCase, name: str
) -> None:
    for first, second in itertools.combinations(ORDERS[name], 2):
        both = together(ORDERS[name], [first, second])
        reply = make_case(name).reply(both)
        assert both[0].is_outcome(reply), f"{first} before {second}: {reply}"
