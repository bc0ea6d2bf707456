"""A small client of etcd: each call is sent once, and its error says whether it may have happened.

It repeats nothing by itself: who may repeat what is for the caller to decide. After a failure the
next call goes to the next endpoint. All methods may be called from any thread. A watch blocks the
thread that iterates over it, and only that.
"""

from __future__ import annotations

import contextlib
import re
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, TypeAlias

import grpc

from trackd.fleet.etcd_messages import MESSAGES

#: Of a key and of all that follow: the end of a range that has none.
NO_END: Final = b"\0"


class EtcdError(Exception):
    """etcd did not do as asked; the message says what it or the connection answered."""


class Refused(EtcdError):
    """It was certainly not done: etcd said so, or it was never sent."""


class Compacted(Refused):
    """The revision is compacted away.

    Attributes:
        revision: the oldest one that is left, where etcd told it; otherwise 0.
    """

    def __init__(self, message: str, revision: int = 0) -> None:
        super().__init__(message)
        self.revision = revision


class Ambiguous(EtcdError):
    """It may have been done, may yet be done, or neither: no answer came in time."""


class NoSpace(Ambiguous):
    """etcd's quota is used up.

    The write that finds it so may have been done all the same: etcd 3.5 and 3.6 then apply it and
    answer with this error. But it is decided: a read tells, and nothing of it comes later.
    """


class KeyValue(NamedTuple):
    """A key as it was at a revision."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int


class RangeResult(NamedTuple):
    """What a read found.

    Attributes:
        kvs: in the order of their keys.
        revision: etcd's revision when it answered; to read more of the same state, give it again.
        more: whether a limit left some out.
        cluster_id: which etcd answered; 0 within a transaction.
    """

    kvs: tuple[KeyValue, ...]
    revision: int
    more: bool
    cluster_id: int


class Get(NamedTuple):
    """Within a transaction: read a key, or all from `key` until before `end`."""

    key: bytes
    end: bytes | None = None
    limit: int | None = None


class Put(NamedTuple):
    """Within a transaction: set a key, which ends with the lease when there is one."""

    key: bytes
    value: bytes
    lease: int = 0


class Delete(NamedTuple):
    """Within a transaction: delete a key, or all from `key` until before `end`."""

    key: bytes
    end: bytes | None = None


Operation: TypeAlias = Get | Put | Delete


class TxnResult(NamedTuple):
    """What a transaction did.

    Attributes:
        succeeded: whether all comparisons held, so that `then` was done, and not `otherwise`.
        responses: one for each operation done: of a Get what it found, of a Delete how many keys
            it deleted, of a Put None.
        revision: etcd's revision after it.
        cluster_id: which etcd answered.
    """

    succeeded: bool
    responses: tuple[RangeResult | int | None, ...]
    revision: int
    cluster_id: int


class Compare(NamedTuple):
    """A condition of a transaction; the functions below make them."""

    field: str
    key: bytes
    value: int | bytes


def create_revision_is(key: bytes, revision: int) -> Compare:
    """Hold when the key was created at this revision; 0 when there is no such key."""
    return Compare("create_revision", key, revision)


def mod_revision_is(key: bytes, revision: int) -> Compare:
    """Hold when the key was last set at this revision; 0 when there is no such key."""
    return Compare("mod_revision", key, revision)


def version_is(key: bytes, version: int) -> Compare:
    """Hold when the key was set so often since it was created; 0 when there is no such key."""
    return Compare("version", key, version)


def value_is(key: bytes, value: bytes) -> Compare:
    """Hold when the key is there with this value."""
    return Compare("value", key, value)


class Change(NamedTuple):
    """What a watch saw: of a deleted key, `kv` has the key and the revision alone."""

    kv: KeyValue
    deleted: bool


class Status(NamedTuple):
    """How one member is.

    Attributes:
        member_id: its own id.
        version: of the program, like "3.5.16".
        db_size: bytes of its database file.
        db_size_in_use: bytes of these that are used; the quota counts `db_size`.
        leader: the id of the member that it takes for the leader; 0 for none.
        errors: what it complains of, alarms included.
    """

    member_id: int
    version: str
    db_size: int
    db_size_in_use: int
    leader: int
    errors: tuple[str, ...]


class Alarm(NamedTuple):
    """An alarm of a member: NOSPACE or CORRUPT."""

    member_id: int
    kind: str


_QUOTA: Final = re.compile(rb"^etcd_server_quota_backend_bytes ([0-9.e+]+)$", re.MULTILINE)
#: Bytes of a member's metrics that are read.
_MOST_METRICS: Final = 4_000_000
_TARGETS: Final = {"version": 0, "create_revision": 1, "mod_revision": 2, "value": 3}
_ALARMS: Final = {1: "NOSPACE", 2: "CORRUPT"}
#: What etcd answers before it does anything. What is not named here is ambiguous.
_NOTHING_DONE: Final = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.UNIMPLEMENTED,
}
_NOTHING_DONE_TEXTS: Final = (
    "etcdserver: no leader",
    "etcdserver: too many requests",
    "grpc: received message larger than max",
)
_OPTIONS: Final = (
    # No retry, no proxy and no shared connection that we did not ask for.
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.use_local_subchannel_pool", 1),
    # A member that comes back is there again within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A dead connection is noticed while it is used; etcd allows no ping within five seconds.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)


def error_of(code: Any, text: str) -> EtcdError:
    """Return the error that a gRPC status means for a call that was sent. Pure."""
    if "database space exceeded" in text:
        return NoSpace(text)
    if "required revision has been compacted" in text:
        return Compacted(text)
    if code in _NOTHING_DONE or text.startswith(_NOTHING_DONE_TEXTS):
        return Refused(text or code.name)
    return Ambiguous(f"{code.name}: {text}")


class Etcd:
    """Connections to the members of one etcd.

    Two clients never share a connection, so that one in a thread of its own is not held up.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        ca: Path | None = None,
        cert: Path | None = None,
        key: Path | None = None,
        timeout: float,
    ) -> None:
        """Read the certificates; connect with the first call.

        Args:
            endpoints: `host:port` of each member, in the order in which they are tried.
            ca: who signed the certificates of the members; None for no TLS.
            cert: our own certificate, and with it `key`.
            key: its private key.
            timeout: seconds after which a call that was not answered ends. Watches have none.

        Raises:
            OSError: a certificate cannot be read.
            ValueError: no endpoint, or a certificate without `ca` or `key`.
        """
        if not endpoints:
            raise ValueError("no endpoint of etcd")
        if (cert is None) != (key is None) or (cert is not None and ca is None):
            raise ValueError("a client certificate needs a key and a ca")
        self.endpoints = tuple(endpoints)
        self._timeout = timeout
        self._credentials = None
        if ca is not None:
            self._credentials = grpc.ssl_channel_credentials(
                ca.read_bytes(),
                None if key is None else key.read_bytes(),
                None if cert is None else cert.read_bytes(),
            )
        self._tls = (ca, cert, key)
        self._lock = threading.Lock()
        self._closed = False
        self._current = 0
        self._channels: dict[str, Any] = {}
        self._connected: set[str] = set()

    def txn(
        self,
        compares: Sequence[Compare],
        then: Sequence[Operation],
        otherwise: Sequence[Operation] = (),
    ) -> TxnResult:
        """Do `then` if all comparisons hold, else `otherwise`; all of it at once or nothing.

        Raises:
            EtcdError: as every method here: Refused or Ambiguous, or one of their kinds.
        """
        request = MESSAGES["TxnRequest"](
            compare=[_compare(each) for each in compares],
            success=[_operation(each) for each in then],
            failure=[_operation(each) for each in otherwise],
        )
        answer = self._call("KV/Txn", request, "TxnResponse")
        return TxnResult(
            answer.succeeded,
            tuple(_response(each) for each in answer.responses),
            answer.header.revision,
            answer.header.cluster_id,
        )

    def range(
        self,
        key: bytes,
        end: bytes | None = None,
        *,
        revision: int | None = None,
        limit: int | None = None,
    ) -> RangeResult:
        """Read a key, or all from `key` until before `end`, as the majority has it now.

        Args:
            key: the key, or the first one.
            end: the first one beyond; `NO_END` for all that follow; None for `key` alone.
            revision: read how it was at this revision; Compacted when that is gone.
            limit: the most keys to read.
        """
        request = MESSAGES["RangeRequest"](
            key=key, range_end=end or b"", revision=revision or 0, limit=limit or 0
        )
        return _range_result(self._call("KV/Range", request, "RangeResponse"))

    def put(self, key: bytes, value: bytes, *, lease: int = 0) -> int:
        """Set a key, which ends with the lease when there is one; return the revision."""
        request = MESSAGES["PutRequest"](key=key, value=value, lease=lease)
        return int(self._call("KV/Put", request, "PutResponse").header.revision)

    def delete_range(self, key: bytes, end: bytes | None = None) -> int:
        """Delete a key, or all from `key` until before `end`; return how many there were."""
        request = MESSAGES["DeleteRangeRequest"](key=key, range_end=end or b"")
        return int(self._call("KV/DeleteRange", request, "DeleteRangeResponse").deleted)

    def compact(self, revision: int) -> None:
        """Forget what was before this revision; then etcd may use its space again."""
        request = MESSAGES["CompactionRequest"](revision=revision, physical=True)
        self._call("KV/Compact", request, "CompactionResponse")

    def grant(self, ttl: int, id: int | None = None) -> int:  # noqa: A002 - etcd's name for it
        """Create a lease and return its id.

        Args:
            ttl: seconds that it lives after each keepalive.
            id: its id, positive, and Refused when it is taken; None lets etcd choose.
        """
        request = MESSAGES["LeaseGrantRequest"](ttl=ttl, id=id or 0)
        return int(self._call("Lease/LeaseGrant", request, "LeaseGrantResponse").id)

    def revoke(self, lease: int) -> None:
        """End a lease and delete its keys; Refused when there is no such lease."""
        request = MESSAGES["LeaseRevokeRequest"](id=lease)
        self._call("Lease/LeaseRevoke", request, "LeaseRevokeResponse")

    def keepalive(self, lease: int) -> int:
        """Prolong a lease once; return the seconds that it now lives, 0 when it is gone."""
        request = MESSAGES["LeaseKeepAliveRequest"](id=lease)
        answer = self._call("Lease/LeaseKeepAlive", request, "LeaseKeepAliveResponse", stream=True)
        return int(answer.ttl)

    def status(self, endpoint: str) -> Status:
        """Ask one member how it is."""
        answer = self._call(
            "Maintenance/Status", MESSAGES["StatusRequest"](), "StatusResponse", endpoint=endpoint
        )
        return Status(
            answer.header.member_id,
            answer.version,
            answer.db_size,
            answer.db_size_in_use,
            answer.leader,
            tuple(answer.errors),
        )

    def quota(self, endpoint: str) -> int | None:
        """Return the bytes that the database of one member may have; None: it does not say.

        etcd says so in its metrics alone, which it serves by HTTP where it serves clients.
        """
        ca, cert, key = self._tls
        connection: HTTPConnection
        try:
            if ca is None:
                connection = HTTPConnection(endpoint, timeout=self._timeout)
            else:
                context = ssl.create_default_context(cafile=ca)
                if cert is not None:
                    context.load_cert_chain(cert, key)
                connection = HTTPSConnection(endpoint, timeout=self._timeout, context=context)
            with contextlib.closing(connection):
                connection.request("GET", "/metrics")
                found = _QUOTA.search(connection.getresponse().read(_MOST_METRICS))
        except (OSError, HTTPException):
            return None
        return int(float(found[1])) if found else None

    def alarms(self) -> tuple[Alarm, ...]:
        """Return the alarms of all members."""
        answer = self._call("Maintenance/Alarm", MESSAGES["AlarmRequest"](), "AlarmResponse")
        return tuple(
            Alarm(each.member_id, _ALARMS.get(each.alarm, str(each.alarm)))
            for each in answer.alarms
        )

    def watch(
        self, key: bytes, end: bytes | None, from_revision: int, *, seconds: float | None = None
    ) -> Watch:
        """Watch a key, or all from `key` until before `end`.

        Args:
            key: the key, or the first one.
            end: the first one beyond, or None.
            from_revision: the first revision that is shown, past ones included.
            seconds: after which it ends; None for never. A member that is silent sends no error.
        """
        endpoint = self._endpoint()
        channel = self._connect(endpoint)
        request = MESSAGES["WatchRequest"](
            create_request=MESSAGES["WatchCreateRequest"](
                key=key, range_end=end or b"", start_revision=from_revision
            )
        )
        method = _method(channel, "Watch/Watch", "WatchResponse", stream=True)
        try:
            return Watch(method, request, seconds, lambda: self._failed(endpoint))
        except ValueError as closed:  # another thread closed the channel
            raise Refused(str(closed)) from None

    def close(self) -> None:
        """Close the connections; calls that wait for an answer end with Ambiguous."""
        with self._lock:
            self._closed = True
            channels = list(self._channels.values())
            self._channels.clear()
            self._connected.clear()
        for channel in channels:
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _call(
        self,
        method: str,
        request: Any,
        answer: str,
        *,
        stream: bool = False,
        endpoint: str | None = None,
    ) -> Any:
        """Send a request once, and return its answer; of a stream the first one."""
        endpoint = endpoint or self._endpoint()
        call = _method(self._connect(endpoint), method, answer, stream=stream)
        try:
            if not stream:
                return call(request, timeout=self._timeout)
            answers = call(iter([request]), timeout=self._timeout)
            try:
                return next(answers)
            finally:
                answers.cancel()
        except StopIteration:
            self._failed(endpoint)
            raise Ambiguous(f"{endpoint} ended the call without an answer") from None
        except grpc.RpcError as failure:
            error = error_of(failure.code(), failure.details() or "")
            if failure.code() not in _NOTHING_DONE:
                self._failed(endpoint)
            raise error from None
        except ValueError as closed:  # another thread closed the channel
            raise Refused(str(closed)) from None

    def _endpoint(self) -> str:
        with self._lock:
            return self.endpoints[self._current]

    def _failed(self, endpoint: str) -> None:
        """Let the next call go to another endpoint, unless a failure of this one already did."""
        with self._lock:
            self._connected.discard(endpoint)
            if self.endpoints[self._current] == endpoint:
                self._current = (self._current + 1) % len(self.endpoints)

    def _connect(self, endpoint: str) -> Any:
        """Return a channel that is connected, or was when it was last used.

        A harmless question goes first over a new connection, so that what is sent after it is
        ambiguous only when the connection is lost in just that moment.

        Raises:
            Refused: there is no connection, so nothing was sent.
        """
        with self._lock:
            if self._closed:
                raise Refused("this client is closed")
            channel = self._channels.get(endpoint)
            if channel is None:
                channel = self._channels[endpoint] = (
                    grpc.insecure_channel(endpoint, options=_OPTIONS)
                    if self._credentials is None
                    else grpc.secure_channel(endpoint, self._credentials, options=_OPTIONS)
                )
            if endpoint in self._connected:
                return channel
        ask = _method(channel, "Maintenance/Status", "StatusResponse", stream=False)
        try:
            ask(MESSAGES["StatusRequest"](), timeout=self._timeout)
        except grpc.RpcError as failure:
            if failure.code() not in _NOTHING_DONE:
                self._failed(endpoint)
                raise Refused(f"{endpoint} does not answer: {failure.details()}") from None
        except ValueError as closed:  # another thread closed the channel
            raise Refused(str(closed)) from None
        with self._lock:
            self._connected.add(endpoint)
        return channel


class Watch:
    """Iterates over the changes of some keys, in their order, without a gap; made by `Etcd.watch`.

    It ends when it is cancelled or its seconds are over. It raises Compacted when the changes asked
    for are gone, and another EtcdError when the connection is lost or the member has lost its
    leader: then watch again from the revision after the last one seen. Cancel it in the end.
    """

    def __init__(
        self, call: Any, request: Any, seconds: float | None, failed: Callable[[], None]
    ) -> None:
        self._failed = failed
        self._limited = seconds is not None
        self._over = threading.Event()
        # Without `hasleader` a member that is cut off from the others stays silent for ever.
        self._answers = call(
            self._requests(request), timeout=seconds, metadata=(("hasleader", "true"),)
        )
        self._changes: Iterator[Change] = iter(())

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Change:
        while (change := next(self._changes, None)) is None:
            self._changes = iter(self._receive())
        if self._over.is_set():
            raise StopIteration
        return change

    def cancel(self) -> None:
        """End the iteration, from any thread. A second call does nothing."""
        self._over.set()
        self._answers.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cancel()

    def _requests(self, request: Any) -> Iterator[Any]:
        """Yield the one request, and keep the stream open until the watch is over."""
        yield request
        self._over.wait()

    def _receive(self) -> list[Change]:
        try:
            answer = next(self._answers)
        except grpc.RpcError as failure:
            timed_out = self._limited and failure.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            if timed_out or self._over.is_set():
                self._over.set()
                raise StopIteration from None
            self._end()
            raise error_of(failure.code(), failure.details() or "") from None
        except StopIteration:
            if self._over.is_set():
                raise
            self._end()
            raise Ambiguous("etcd ended the watch") from None
        if answer.canceled:
            self.cancel()
            if answer.compact_revision:
                raise Compacted(answer.cancel_reason, answer.compact_revision)
            raise Refused(answer.cancel_reason or "etcd cancelled the watch")
        return [Change(_key_value(each.kv), each.type == 1) for each in answer.events]

    def _end(self) -> None:
        self._over.set()
        self._failed()


def _method(channel: Any, method: str, answer: str, *, stream: bool) -> Any:
    kind = channel.stream_stream if stream else channel.unary_unary
    return kind(
        f"/etcdserverpb.{method}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=MESSAGES[answer].FromString,
    )


def _compare(compare: Compare) -> Any:
    return MESSAGES["Compare"](
        key=compare.key, target=_TARGETS[compare.field], **{compare.field: compare.value}
    )


def _operation(operation: Operation) -> Any:
    make = MESSAGES["RequestOp"]
    match operation:
        case Get(key, end, limit):
            return make(
                range=MESSAGES["RangeRequest"](key=key, range_end=end or b"", limit=limit or 0)
            )
        case Put(key, value, lease):
            return make(put=MESSAGES["PutRequest"](key=key, value=value, lease=lease))
        case Delete(key, end):
            return make(delete_range=MESSAGES["DeleteRangeRequest"](key=key, range_end=end or b""))


def _response(response: Any) -> RangeResult | int | None:
    kind = response.WhichOneof("response")
    if kind == "range":
        return _range_result(response.range)
    return int(response.delete_range.deleted) if kind == "delete_range" else None


def _range_result(answer: Any) -> RangeResult:
    return RangeResult(
        tuple(_key_value(each) for each in answer.kvs),
        answer.header.revision,
        answer.more,
        answer.header.cluster_id,
    )


def _key_value(kv: Any) -> KeyValue:
    return KeyValue(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)
