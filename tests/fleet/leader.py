"""A tracker of a fleet as a process: it stands by, and serves an endpoint while it leads.

It is what `trackd lead` will be, but for one host: the real election, the real store in etcd and
the real writer, on a unix socket in place of relays. It exits with 0 after SIGTERM, and with 3
when its term is over.
"""

from __future__ import annotations

import functools
import logging
import os
import queue
import sys
from pathlib import Path
from typing import Any

import pykka
import zmq

from trackd.actors.messages import Audience, Recover, Serve
from trackd.actors.publisher import EventPublisher
from trackd.actors.ticker import ExpiryTicker
from trackd.actors.watcher import ProcessWatcher
from trackd.actors.writer import TrackerActor
from trackd.config.settings import Config
from trackd.fleet.election import Candidate, Term
from trackd.fleet.etcd import Etcd
from trackd.fleet.fenced import Fence
from trackd.fleet.store import EtcdStore
from trackd.signals import ActorEnded, Events, SignalCame, take_signals
from trackd_client.wire.clock import boottime

log = logging.getLogger("trackd")

PREFIX = b"trackd/1/example.com/"
TERM_OVER = 3
#: Seconds that the actors have to start: reading what is stored, on a slow machine.
START_SECONDS = 60.0


def main(endpoint: str, ttl: int, directory: Path, etcd: list[str]) -> int:
    """Stand by, lead, and return the exit code."""
    logging.basicConfig(format="%(asctime)s %(message)s %(__dict__)s", level=logging.WARNING)
    events: Events = queue.SimpleQueue()
    take_signals(events)
    candidate = Candidate(
        lambda timeout: Etcd(etcd, timeout=timeout),
        PREFIX,
        endpoint.encode(),
        ttl=ttl,
        directory=directory,
        name="example.com",
    )
    with candidate:
        term = candidate.campaign()
        assert term is not None
        try:
            return serve(endpoint, ttl, term, etcd, events)
        except Exception:
            log.exception("the leader ends")
            os._exit(1)  # whatever threads there are


def serve(endpoint: str, ttl: int, term: Term, etcd: list[str], events: Events) -> int:
    """Serve the endpoint while the term is valid."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    config = Config(cluster_name="example.com", endpoint=endpoint, state_dir="", claim_timeout=0.0)
    audience = Audience()
    open_store = functools.partial(
        EtcdStore,
        Etcd(etcd, timeout=1.0),
        PREFIX,
        Fence(term.key, term.fence),
        functools.partial(term.is_valid, ttl / 5),
    )
    actors: list[pykka.ActorRef[Any]] = []

    def ended(name: str, thread: Any) -> None:
        events.put(ActorEnded(name, thread))

    tracker = TrackerActor.start(ended, context, config, boottime, open_store, audience=audience)
    actors.append(tracker)
    tracker.ask(Recover(), timeout=START_SECONDS)
    actors.append(ticker := ExpiryTicker.start(ended, tracker, boottime))
    actors.append(watcher := ProcessWatcher.start(ended, tracker))
    actors.append(publisher := EventPublisher.start(ended, context, audience))
    tracker.ask(Serve(endpoint, ticker, watcher, publisher, "", None), timeout=START_SECONDS)
    print("serves", term.fence, flush=True)
    while term.is_valid():
        try:
            event = events.get(timeout=0.25)
        except queue.Empty:
            continue
        if isinstance(event, SignalCame):
            for actor in reversed(actors):
                actor.stop()
            return 0
        print("ended", event.name, file=sys.stderr, flush=True)
        break
    os._exit(TERM_OVER)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:]))
