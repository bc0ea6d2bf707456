"""The durable state: what a restart brings back. Only `trackd.state.apply` edits it. No I/O.

What is not durable stands beside it: `Session.live`, the advice, the counters.
"""

from __future__ import annotations

from collections import OrderedDict

from trackd.rules.aliases import Aliases
from trackd.rules.backoff import Backoff
from trackd.rules.budget import Budget
from trackd.rules.liveness import Lives
from trackd.rules.tombstones import Tombstones
from trackd.rules.tracker import Tracker
from trackd.sessions.queue import Queue
from trackd.sessions.sessions import Lease, Session, Sessions
from trackd.state.history import History
from trackd.state.sources import Sources


class State:
    """Everything that the daemon knows.

    Attributes:
        tracker: the proxies, and what each lease holds.
        sessions: the open sessions, and those that ended recently.
        queue: the acquires that wait.
        leases: who owns which lease.
        aliases: the leases that follow gossip, and to which names.
        lives: the leases that have reported, and what their reports say.
        in_flight: the leases that have not claimed; whose time to claim is up first comes first.
        tombstones: of the proxies that an administrator had forgotten.
        sources: sessions that gossiped and have ended.
        budget: how many dials may begin.
        backoff: the pause of the host after failed dials.
        paused: the sessions with a pause of their own, by token.
        reports_outcomes: whether anybody has ever reported how a dial failed.
        history: the last events.
        revision: that of the last event; it counts over restarts.
        epoch: the starts of the daemon with this state.
        tracker_id: the id of this state; "" in an empty one.
        cluster: the cluster whose state this is; "" in an empty one.
        configured_count: the connection count of the configuration when the state was last
            changed by it; None in an empty state.
    """

    def __init__(
        self,
        cluster_name: str,
        *,
        dial_rate: float = 0.0,
        dial_burst: int = 1,
        history: int = 0,
        history_age: float = 0.0,
    ) -> None:
        """Create an empty state.

        Args:
            cluster_name: the cluster that the daemon serves.
            dial_rate: see `Budget`.
            dial_burst: see `Budget`.
            history: see `History`.
            history_age: see `History`.
        """
        # Nothing here reads a clock: each change brings its time.
        self.tracker = Tracker(cluster_name)
        self.tracker.watch_groups()
        self.sessions = Sessions()
        self.queue = Queue()
        self.leases: dict[int, Lease] = {}
        self.aliases = Aliases()
        self.lives = Lives()
        self.in_flight: OrderedDict[int, None] = OrderedDict()
        self.tombstones = Tombstones()
        self.sources = Sources()
        self.budget = Budget(dial_rate, dial_burst)
        self.backoff = Backoff()
        self.paused: dict[bytes, Session] = {}
        self.reports_outcomes = False
        self.history = History(history, history_age)
        self.revision = 0
        self.epoch = 0
        self.tracker_id = ""
        self.cluster = ""
        self.configured_count: int | None = None
