"""The RouterMailbox alone: one inbox for remote peers and for actors of this process."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from helpers.support import PATIENCE, RawPeer, pack, wait_until
from trackd.actors import mailbox as module
from trackd.actors.inbox import Envelope
from trackd.actors.mailbox import BATCH, BATCH_BYTES, PART_BYTES, MailboxFailed, RouterMailbox
from trackd.operations.call import Call
from trackd.sessions.identity import Peer
from trackd_client.errors import Code
from trackd_client.wire.protocol import FRAME_SLACK, REPLY, encode

MAX_FRAME = 1 << 20


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    with zmq.Context() as context:
        yield context


@pytest.fixture
def mailbox(context: zmq.Context[zmq.Socket[bytes]]) -> Iterator[RouterMailbox]:
    mailbox = RouterMailbox(context, MAX_FRAME, {"costly"})
    yield mailbox
    mailbox.close()


@pytest.fixture
def endpoint(mailbox: RouterMailbox, tmp_path: Path) -> str:
    endpoint = f"ipc://{tmp_path}/socket"
    mailbox.bind(endpoint)
    return endpoint


@pytest.fixture
def peer(endpoint: str) -> Iterator[RawPeer]:
    with RawPeer(endpoint) as peer:
        yield peer


def take(mailbox: RouterMailbox) -> Call:
    """Return the next remote request."""
    envelope = mailbox.get()
    call, reply_to = envelope.message, envelope.reply_to
    assert isinstance(call, Call)
    assert id(reply_to) == id(call), "the request is its own reply handle"
    return call


def arrived(mailbox: RouterMailbox, least: int = 1) -> None:
    """Wait until so many requests are in the ROUTER, as far as that can be seen: the first is."""
    wait_until(lambda: mailbox._router.poll(0))
    if least > 1:
        time.sleep(0.05)  # libzmq does not tell how many; a test that needs all checks that itself


def request(seq: int, **fields: Any) -> bytes:
    return pack({"op": "ping", "seq": seq} | fields)


def reply(seq: int, **fields: Any) -> bytes:
    return encode(REPLY, {"seq": seq, "revision": 0, **fields})


# -- messages of this process ---------------------------------------------------------


def test_messages_of_this_process_come_in_their_order(mailbox: RouterMailbox) -> None:
    for number in range(5):
        mailbox.put(Envelope(number))
    assert [mailbox.get().message for _ in range(5)] == [0, 1, 2, 3, 4]
    assert mailbox.empty()


def test_a_put_wakes_a_get_that_waits(mailbox: RouterMailbox) -> None:
    got: list[Any] = []
    ended = threading.Event()
    mailbox.end_batch = ended.set  # the last thing before it waits
    reader = threading.Thread(target=lambda: got.append(mailbox.get().message))
    reader.start()
    assert ended.wait(PATIENCE)
    time.sleep(0.02)
    mailbox.put(Envelope("wake up"))
    reader.join(PATIENCE)
    assert got == ["wake up"]


def test_putting_never_blocks_even_when_nobody_gets(mailbox: RouterMailbox) -> None:
    """Wake-ups are coalesced: far more messages than any queue of libzmq holds."""
    for number in range(20_000):
        mailbox.put(Envelope(number))
    assert [mailbox.get().message for _ in range(20_000)] == list(range(20_000))


def test_no_wake_up_gets_lost_between_many_threads(mailbox: RouterMailbox) -> None:
    """Each thread waits until its message was handled before it puts the next one."""
    count, threads = 1_500, 4
    gates = [threading.Semaphore(0) for _ in range(threads)]

    def put(which: int) -> None:
        for number in range(count):
            mailbox.put(Envelope((which, number)))
            assert gates[which].acquire(timeout=PATIENCE), "a wake-up got lost"

    writers = [threading.Thread(target=put, args=[which]) for which in range(threads)]
    for writer in writers:
        writer.start()
    seen: list[list[int]] = [[] for _ in range(threads)]
    for _ in range(count * threads):
        which, number = mailbox.get().message
        seen[which].append(number)
        gates[which].release()
    for writer in writers:
        writer.join(PATIENCE)
    assert seen == [list(range(count))] * threads


def test_a_put_into_a_closed_mailbox_is_kept_for_the_teardown(
    context: zmq.Context[zmq.Socket[bytes]],
) -> None:
    mailbox = RouterMailbox(context, MAX_FRAME)
    mailbox.close()
    mailbox.put(Envelope("too late"))
    assert not mailbox.empty()
    assert mailbox.get().message == "too late"


def test_only_messages_of_this_process_keep_it_from_being_empty(
    mailbox: RouterMailbox, peer: RawPeer
) -> None:
    """Otherwise a teardown under load would never end."""
    for seq in range(1, 4):
        peer.send(request(seq))
    arrived(mailbox)
    assert mailbox.empty()
    assert take(mailbox).seq == 1
    assert mailbox.empty()
    mailbox.put(Envelope("local"))
    assert not mailbox.empty()


# -- requests of peers ----------------------------------------------------------------


def test_a_request_comes_with_its_peer_as_the_kernel_knows_it(
    mailbox: RouterMailbox, peer: RawPeer
) -> None:
    peer.send(request(7, other=[1]))
    call = take(mailbox)
    assert call.peer == Peer(os.geteuid(), os.getegid(), os.getpid())
    assert (call.seq, call.body, call.problem) == (7, {"op": "ping", "seq": 7, "other": [1]}, None)


@pytest.mark.parametrize(
    ("frames", "code", "seq"),
    [
        ([b"\xc1"], Code.MALFORMED, 0),
        ([b""], Code.MALFORMED, 0),
        ([request(3), b""], Code.MALFORMED, 0),
        ([b"", request(3)], Code.MALFORMED, 0),
        ([b"x"] * 3_000, Code.MALFORMED, 0),
        ([pack({"seq": 3}, version=2)], Code.UNSUPPORTED_VERSION, 3),
        ([request(0)], Code.INVALID_ARGUMENT, 0),
        ([pack({"op": "ping", "seq": 3.0})], Code.INVALID_ARGUMENT, 3),
        ([pack({"op": "ping", "seq": 3.5})], Code.INVALID_ARGUMENT, 0),
        ([request(3, fill=bytes(MAX_FRAME))], Code.LIMIT_EXCEEDED, 3),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_with_a_message_comes_with_it(
    mailbox: RouterMailbox, peer: RawPeer, frames: list[bytes], code: str, seq: int
) -> None:
    peer.send(*frames)
    peer.send(request(9))
    call = take(mailbox)
    assert call.problem is not None
    assert (call.problem.code, call.seq, call.body.get("fill")) == (
        code,
        seq,
        call.body.get("fill"),
    )
    assert take(mailbox).seq == 9, "the next message is whole"


@pytest.mark.parametrize(
    ("frames", "says"),
    [
        ([b"\xc1" * (MAX_FRAME + 9), b""], "one frame"),
        ([b"\xc1" * (MAX_FRAME + 9)], "not a msgpack message"),
        ([pack(bytes(MAX_FRAME), version=2)], "protocol version 2"),
        ([pack(bytes(MAX_FRAME))], "the body of a message is a map"),
        ([request(0, fill=bytes(MAX_FRAME))], "seq must be"),
        ([request(3, fill=bytes(MAX_FRAME))], "the message has"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_of_several_things_that_are_wrong_with_a_frame_the_first_comes_with_it(
    mailbox: RouterMailbox, peer: RawPeer, frames: list[bytes], says: str
) -> None:
    peer.send(*frames)
    assert says in str(take(mailbox).problem)


def test_messages_that_are_no_requests_are_skipped(mailbox: RouterMailbox, peer: RawPeer) -> None:
    for kind in (0, 2, 3, 4, None, "x"):
        peer.send(pack({"seq": 1}, kind=kind))
    peer.send(request(2))
    assert take(mailbox).seq == 2


def test_a_frame_far_beyond_the_limit_never_arrives(
    mailbox: RouterMailbox, endpoint: str, peer: RawPeer
) -> None:
    peer.send(request(1, fill=bytes(MAX_FRAME + FRAME_SLACK)))
    with RawPeer(endpoint) as other:
        other.send(request(2))
        assert take(mailbox).seq == 2


# -- batches --------------------------------------------------------------------------


def batches(mailbox: RouterMailbox, count: int) -> list[list[int]]:
    """Take so many requests; return their numbers, in the batches in which they came."""
    found: list[list[int]] = [[]]
    mailbox.end_batch = lambda: found.append([])
    for _ in range(count):
        found[-1].append(take(mailbox).seq)
    return [batch for batch in found if batch]


def test_a_batch_is_what_has_arrived_up_to_a_number(
    mailbox: RouterMailbox, peer: RawPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH_SECONDS", PATIENCE)
    count = 3 * BATCH

    def has_full_batches() -> bool:
        for seq in range(1, count + 1):
            peer.send(request(seq))
        arrived(mailbox, count)
        found = batches(mailbox, count)
        assert [seq for batch in found for seq in batch] == list(range(1, count + 1))
        sizes = [len(batch) for batch in found]
        assert max(sizes) <= BATCH
        return max(sizes) == BATCH and len(sizes) < count / 10

    wait_until(has_full_batches)  # where libzmq was slow, less has arrived


def test_a_batch_ends_when_it_has_become_large(mailbox: RouterMailbox, peer: RawPeer) -> None:
    size = BATCH_BYTES // 4
    for seq in range(1, 33):
        peer.send(request(seq, fill=bytes(size)))
    arrived(mailbox, 32)
    assert max(len(batch) for batch in batches(mailbox, 32)) <= 4


def test_a_batch_ends_at_its_time_and_the_next_one_begins_with_what_is_left(
    mailbox: RouterMailbox, peer: RawPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH_SECONDS", 0.0)
    for seq in range(1, 11):
        peer.send(request(seq))
    arrived(mailbox, 10)
    assert batches(mailbox, 10) == [[seq] for seq in range(1, 11)]


@pytest.mark.parametrize("fields", [{"op": "costly"}, {"fill": bytes(PART_BYTES)}])
def test_costly_requests_wait_in_the_router_which_serves_its_connections_in_turn(
    mailbox: RouterMailbox, peer: RawPeer, fields: dict[str, Any]
) -> None:
    for seq in range(1, 21):
        peer.send(request(seq, **fields))
    arrived(mailbox, 20)
    for seq in range(1, 21):
        assert take(mailbox).seq == seq
        assert not mailbox._ready


def test_cheap_requests_share_a_batch(
    mailbox: RouterMailbox, peer: RawPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH_SECONDS", PATIENCE)

    def shares() -> bool:
        for seq in range(1, 21):
            peer.send(request(seq))
        arrived(mailbox, 20)
        return max(map(len, batches(mailbox, 20))) > 1

    wait_until(shares)


def test_a_message_of_this_process_in_a_batch_is_handled_before_the_batch_ends(
    mailbox: RouterMailbox, peer: RawPeer
) -> None:
    peer.send(request(1))
    order: list[object] = []
    mailbox.end_batch = lambda: order.append("end")
    order.append(take(mailbox).seq)
    mailbox.put(Envelope("local"))
    order.append(mailbox.get().message)
    peer.send(request(2))
    order.append(take(mailbox).seq)
    assert order[:4] == ["end", 1, "local", "end"]
    assert order[-1] == 2  # its wake-up may come before it, and make a batch of nothing


def test_no_answer_is_seen_before_its_batch_was_flushed(
    mailbox: RouterMailbox, peer: RawPeer
) -> None:
    peer.send(request(1))
    call = take(mailbox)
    call.set(reply(1))
    assert peer.receive(0.05) is None
    mailbox.flush()
    assert peer.receive() == {"seq": 1, "revision": 0}


def test_what_a_batch_answered_can_be_taken_back(mailbox: RouterMailbox, peer: RawPeer) -> None:
    peer.send(request(1))
    call = take(mailbox)
    call.set(reply(1))
    mailbox.send(call.route, reply(2))
    mailbox.discard()
    call.set(reply(1, error="unavailable"))
    mailbox.flush()
    assert peer.receive() == {"seq": 1, "revision": 0, "error": "unavailable"}
    assert peer.receive(0.05) is None


def test_a_request_without_an_answer_gets_none(mailbox: RouterMailbox, peer: RawPeer) -> None:
    peer.send(request(1))
    call = take(mailbox)
    call.set(None)
    call.set_exception(None)
    mailbox.flush()
    assert peer.receive(0.05) is None


# -- replies that cannot go out -------------------------------------------------------


def unsent(mailbox: RouterMailbox) -> bool:
    return mailbox.has_unsent


def test_an_answer_to_a_peer_that_has_gone_is_dropped(
    mailbox: RouterMailbox, endpoint: str, peer: RawPeer
) -> None:
    with RawPeer(endpoint) as gone:
        gone.send(request(1))
        call = take(mailbox)
    peer.send(request(2))

    def forgotten() -> bool:
        try:
            mailbox._router.send_multipart([call.route, b""], zmq.DONTWAIT)
        except zmq.ZMQError as error:
            return bool(error.errno == zmq.EHOSTUNREACH)
        return False

    wait_until(forgotten)
    call.set(reply(1))
    take(mailbox).set(reply(2))
    mailbox.flush()
    assert peer.receive() == {"seq": 2, "revision": 0}
    assert not unsent(mailbox)


def test_an_answer_that_finds_no_room_is_tried_again(
    context: zmq.Context[zmq.Socket[bytes]], mailbox: RouterMailbox, endpoint: str
) -> None:
    with context.socket(zmq.DEALER) as slow:
        slow.linger = 0
        slow.rcvhwm = 1
        slow.connect(endpoint)
        slow.send(request(1))
        call = take(mailbox)
        sent = 0
        while not unsent(mailbox):
            sent += 1
            assert sent < 10_000
            call.set(reply(sent, fill=bytes(4_000)))
            mailbox.flush()
        for _ in range(sent - 1):
            assert slow.poll(int(PATIENCE * 1000))
            slow.recv()
        mailbox.flush()
        assert not unsent(mailbox)
        assert slow.poll(int(PATIENCE * 1000))
        assert slow.recv() == reply(sent, fill=bytes(4_000))


def test_one_peer_without_room_takes_nothing_from_the_others(
    context: zmq.Context[zmq.Socket[bytes]],
    mailbox: RouterMailbox,
    endpoint: str,
    peer: RawPeer,
) -> None:
    with context.socket(zmq.DEALER) as deaf:
        deaf.linger = 0
        deaf.rcvhwm = 1
        deaf.connect(endpoint)
        deaf.send(request(1))
        call = take(mailbox)
        for _ in range(module._SEND_HWM + 500):
            call.set(reply(1, fill=bytes(10_000)))
        peer.send(request(2))
        take(mailbox).set(reply(2))
        mailbox.flush()
        assert peer.receive() == {"seq": 2, "revision": 0}


# -- failures -------------------------------------------------------------------------


def test_get_never_raises_for_then_the_actor_would_be_half_dead(mailbox: RouterMailbox) -> None:
    def fail() -> None:
        raise RuntimeError("the store is on fire")

    mailbox.end_batch = fail
    for _ in range(2):
        envelope = mailbox.get()
        assert isinstance(envelope.message, MailboxFailed)
        assert str(envelope.message.error) == "the store is on fire"
        assert envelope.reply_to is None, "nobody awaits it, so that handling it raises"
    mailbox.put(Envelope("the order to stop"))
    assert mailbox.get().message == "the order to stop", "what ends the actor still reaches it"


def test_a_socket_that_fails_becomes_a_message_too(
    context: zmq.Context[zmq.Socket[bytes]],
) -> None:
    mailbox = RouterMailbox(context, MAX_FRAME)
    mailbox.close()
    failed = mailbox.get().message
    assert isinstance(failed, MailboxFailed)
    assert isinstance(failed.error, zmq.ZMQError)


def test_the_limit_of_frames_can_be_changed(mailbox: RouterMailbox, endpoint: str) -> None:
    mailbox.limit_frames(2_000)
    with RawPeer(endpoint) as peer:
        peer.send(request(1, fill=bytes(2_000)))
        problem = take(mailbox).problem
        assert problem is not None
        assert "2000 are allowed" in str(problem)
    mailbox.limit_frames(10_000)
    with RawPeer(endpoint) as peer:
        peer.send(request(2, fill=bytes(2_000)))
        assert take(mailbox).problem is None


def test_several_mailboxes_live_in_one_context(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    mailboxes = [RouterMailbox(context, MAX_FRAME) for _ in range(3)]
    for number, mailbox in enumerate(mailboxes):
        mailbox.put(Envelope(number))
    assert [mailbox.get().message for mailbox in mailboxes] == [0, 1, 2]
    for mailbox in mailboxes:
        mailbox.close()
