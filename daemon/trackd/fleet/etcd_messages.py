"""The messages of etcd's interface that trackd uses, as protobuf classes made at import.

Only the fields that we use, with etcd's names and numbers: protobuf skips all others. There is no
generated code, because what protoc writes fits one major version of protobuf alone. Names of
messages do not go over the wire. No I/O.
"""

from __future__ import annotations

from typing import Any, Final

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

_PACKAGE: Final = "trackd.etcd"

#: For each message its fields: number, name, type. A type is a scalar, or the name of a message;
#: `[]` makes it repeated, and `name/field` puts the field into the oneof of that name.
_MESSAGES: Final = {
    "Header": "1 cluster_id uint64, 2 member_id uint64, 3 revision int64",
    "KeyValue": "1 key bytes, 2 create_revision int64, 3 mod_revision int64, 4 version int64,"
    "5 value bytes, 6 lease int64",
    # KV
    "RangeRequest": "1 key bytes, 2 range_end bytes, 3 limit int64, 4 revision int64",
    "RangeResponse": "1 header Header, 2 kvs KeyValue[], 3 more bool",
    "PutRequest": "1 key bytes, 2 value bytes, 3 lease int64",
    "PutResponse": "1 header Header",
    "DeleteRangeRequest": "1 key bytes, 2 range_end bytes",
    "DeleteRangeResponse": "1 header Header, 2 deleted int64",
    "Compare": "1 result int32, 2 target int32, 3 key bytes, 4 value_of/version int64,"
    "5 value_of/create_revision int64, 6 value_of/mod_revision int64, 7 value_of/value bytes",
    "RequestOp": "1 request/range RangeRequest, 2 request/put PutRequest,"
    "3 request/delete_range DeleteRangeRequest",
    "ResponseOp": "1 response/range RangeResponse, 2 response/put PutResponse,"
    "3 response/delete_range DeleteRangeResponse",
    "TxnRequest": "1 compare Compare[], 2 success RequestOp[], 3 failure RequestOp[]",
    "TxnResponse": "1 header Header, 2 succeeded bool, 3 responses ResponseOp[]",
    "CompactionRequest": "1 revision int64, 2 physical bool",
    "CompactionResponse": "1 header Header",
    # Watch
    "WatchCreateRequest": "1 key bytes, 2 range_end bytes, 3 start_revision int64",
    "WatchRequest": "1 request/create_request WatchCreateRequest",
    "Event": "1 type int32, 2 kv KeyValue",
    "WatchResponse": "1 header Header, 3 created bool, 4 canceled bool, 5 compact_revision int64,"
    "6 cancel_reason string, 11 events Event[]",
    # Lease
    "LeaseGrantRequest": "1 ttl int64, 2 id int64",
    "LeaseGrantResponse": "1 header Header, 2 id int64, 3 ttl int64, 4 error string",
    "LeaseRevokeRequest": "1 id int64",
    "LeaseRevokeResponse": "1 header Header",
    "LeaseKeepAliveRequest": "1 id int64",
    "LeaseKeepAliveResponse": "1 header Header, 2 id int64, 3 ttl int64",
    # Maintenance
    "StatusRequest": "",
    "StatusResponse": "1 header Header, 2 version string, 3 db_size int64, 4 leader uint64,"
    "7 raft_applied_index uint64, 8 errors string[], 9 db_size_in_use int64",
    "AlarmRequest": "1 action int32, 2 member_id uint64, 3 alarm int32",
    "AlarmMember": "1 member_id uint64, 2 alarm int32",
    "AlarmResponse": "1 header Header, 2 alarms AlarmMember[]",
}
_SCALARS: Final = {
    name: getattr(FieldDescriptorProto, f"TYPE_{name.upper()}")
    for name in ("bool", "bytes", "int32", "int64", "string", "uint64")
}


def _add_field(message: Any, text: str) -> None:
    number, name, kind = text.split()
    oneof, _, name = name.rpartition("/")
    field = message.field.add(name=name, number=int(number))
    if oneof:
        if not message.oneof_decl:
            message.oneof_decl.add(name=oneof)
        field.oneof_index = 0
    repeated = kind.endswith("[]")
    kind = kind.removesuffix("[]")
    field.label = (
        FieldDescriptorProto.LABEL_REPEATED if repeated else FieldDescriptorProto.LABEL_OPTIONAL
    )
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type = FieldDescriptorProto.TYPE_MESSAGE
        field.type_name = f".{_PACKAGE}.{kind}"


def _make() -> dict[str, Any]:
    file = FileDescriptorProto(name="trackd/etcd.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = DescriptorProto(name=name)
        for text in filter(None, fields.split(",")):
            _add_field(message, text)
        file.message_type.append(message)
    # A pool of our own: the default one is shared with whatever else uses protobuf here.
    pool = DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {
        name: GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
        for name in _MESSAGES
    }


#: The class of each message, by its name.
MESSAGES: Final = _make()
