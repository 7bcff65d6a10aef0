from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Frame(_message.Message):
    __slots__ = ("session", "hello", "welcome", "refusal", "parcel", "ack", "reject", "blob_request", "blob_chunk", "blob_absent", "stream_open", "stream_data", "stream_credit", "stream_end", "ping", "pong")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    PARCEL_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    REJECT_FIELD_NUMBER: _ClassVar[int]
    BLOB_REQUEST_FIELD_NUMBER: _ClassVar[int]
    BLOB_CHUNK_FIELD_NUMBER: _ClassVar[int]
    BLOB_ABSENT_FIELD_NUMBER: _ClassVar[int]
    STREAM_OPEN_FIELD_NUMBER: _ClassVar[int]
    STREAM_DATA_FIELD_NUMBER: _ClassVar[int]
    STREAM_CREDIT_FIELD_NUMBER: _ClassVar[int]
    STREAM_END_FIELD_NUMBER: _ClassVar[int]
    PING_FIELD_NUMBER: _ClassVar[int]
    PONG_FIELD_NUMBER: _ClassVar[int]
    session: int
    hello: Hello
    welcome: Welcome
    refusal: Refusal
    parcel: Parcel
    ack: Ack
    reject: Reject
    blob_request: BlobRequest
    blob_chunk: BlobChunk
    blob_absent: BlobAbsent
    stream_open: StreamOpen
    stream_data: StreamData
    stream_credit: StreamCredit
    stream_end: StreamEnd
    ping: Ping
    pong: Pong
    def __init__(self, session: _Optional[int] = ..., hello: _Optional[_Union[Hello, _Mapping]] = ..., welcome: _Optional[_Union[Welcome, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ..., parcel: _Optional[_Union[Parcel, _Mapping]] = ..., ack: _Optional[_Union[Ack, _Mapping]] = ..., reject: _Optional[_Union[Reject, _Mapping]] = ..., blob_request: _Optional[_Union[BlobRequest, _Mapping]] = ..., blob_chunk: _Optional[_Union[BlobChunk, _Mapping]] = ..., blob_absent: _Optional[_Union[BlobAbsent, _Mapping]] = ..., stream_open: _Optional[_Union[StreamOpen, _Mapping]] = ..., stream_data: _Optional[_Union[StreamData, _Mapping]] = ..., stream_credit: _Optional[_Union[StreamCredit, _Mapping]] = ..., stream_end: _Optional[_Union[StreamEnd, _Mapping]] = ..., ping: _Optional[_Union[Ping, _Mapping]] = ..., pong: _Optional[_Union[Pong, _Mapping]] = ...) -> None: ...

class Version(_message.Message):
    __slots__ = ("major", "minor")
    MAJOR_FIELD_NUMBER: _ClassVar[int]
    MINOR_FIELD_NUMBER: _ClassVar[int]
    major: int
    minor: int
    def __init__(self, major: _Optional[int] = ..., minor: _Optional[int] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol", "device", "agent_version", "resume", "nonce", "max_packet", "hears_kept")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    MAX_PACKET_FIELD_NUMBER: _ClassVar[int]
    HEARS_KEPT_FIELD_NUMBER: _ClassVar[int]
    protocol: Version
    device: str
    agent_version: str
    resume: int
    nonce: int
    max_packet: int
    hears_kept: bool
    def __init__(self, protocol: _Optional[_Union[Version, _Mapping]] = ..., device: _Optional[str] = ..., agent_version: _Optional[str] = ..., resume: _Optional[int] = ..., nonce: _Optional[int] = ..., max_packet: _Optional[int] = ..., hears_kept: _Optional[bool] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("protocol", "session", "nonce", "resumed", "max_packet", "heartbeat_s", "unix_time_s", "deadlines_s")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    MAX_PACKET_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_S_FIELD_NUMBER: _ClassVar[int]
    UNIX_TIME_S_FIELD_NUMBER: _ClassVar[int]
    DEADLINES_S_FIELD_NUMBER: _ClassVar[int]
    protocol: Version
    session: int
    nonce: int
    resumed: bool
    max_packet: int
    heartbeat_s: float
    unix_time_s: float
    deadlines_s: float
    def __init__(self, protocol: _Optional[_Union[Version, _Mapping]] = ..., session: _Optional[int] = ..., nonce: _Optional[int] = ..., resumed: _Optional[bool] = ..., max_packet: _Optional[int] = ..., heartbeat_s: _Optional[float] = ..., unix_time_s: _Optional[float] = ..., deadlines_s: _Optional[float] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("nonce", "code", "message", "retry_after_s")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    nonce: int
    code: str
    message: str
    retry_after_s: float
    def __init__(self, nonce: _Optional[int] = ..., code: _Optional[str] = ..., message: _Optional[str] = ..., retry_after_s: _Optional[float] = ...) -> None: ...

class Parcel(_message.Message):
    __slots__ = ("id", "kind", "run", "round", "deadline_unix_s", "trace", "body", "blobs")
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    BLOBS_FIELD_NUMBER: _ClassVar[int]
    id: str
    kind: str
    run: str
    round: int
    deadline_unix_s: float
    trace: str
    body: bytes
    blobs: _containers.RepeatedCompositeFieldContainer[BlobRef]
    def __init__(self, id: _Optional[str] = ..., kind: _Optional[str] = ..., run: _Optional[str] = ..., round: _Optional[int] = ..., deadline_unix_s: _Optional[float] = ..., trace: _Optional[str] = ..., body: _Optional[bytes] = ..., blobs: _Optional[_Iterable[_Union[BlobRef, _Mapping]]] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("parcels",)
    PARCELS_FIELD_NUMBER: _ClassVar[int]
    parcels: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, parcels: _Optional[_Iterable[str]] = ...) -> None: ...

class Reject(_message.Message):
    __slots__ = ("parcel", "code", "message", "retry_after_s")
    PARCEL_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    parcel: str
    code: str
    message: str
    retry_after_s: float
    def __init__(self, parcel: _Optional[str] = ..., code: _Optional[str] = ..., message: _Optional[str] = ..., retry_after_s: _Optional[float] = ...) -> None: ...

class BlobRef(_message.Message):
    __slots__ = ("digest", "size", "role")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    size: int
    role: str
    def __init__(self, digest: _Optional[bytes] = ..., size: _Optional[int] = ..., role: _Optional[str] = ...) -> None: ...

class BlobRequest(_message.Message):
    __slots__ = ("digest", "size", "chunk", "offsets", "repair", "bare", "alone")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    OFFSETS_FIELD_NUMBER: _ClassVar[int]
    REPAIR_FIELD_NUMBER: _ClassVar[int]
    BARE_FIELD_NUMBER: _ClassVar[int]
    ALONE_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    size: int
    chunk: int
    offsets: _containers.RepeatedScalarFieldContainer[int]
    repair: bool
    bare: bool
    alone: bool
    def __init__(self, digest: _Optional[bytes] = ..., size: _Optional[int] = ..., chunk: _Optional[int] = ..., offsets: _Optional[_Iterable[int]] = ..., repair: _Optional[bool] = ..., bare: _Optional[bool] = ..., alone: _Optional[bool] = ...) -> None: ...

class BlobChunk(_message.Message):
    __slots__ = ("digest", "offset", "crc32")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    CRC32_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    offset: int
    crc32: int
    def __init__(self, digest: _Optional[bytes] = ..., offset: _Optional[int] = ..., crc32: _Optional[int] = ...) -> None: ...

class BlobAbsent(_message.Message):
    __slots__ = ("digest", "message")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    message: str
    def __init__(self, digest: _Optional[bytes] = ..., message: _Optional[str] = ...) -> None: ...

class StreamOpen(_message.Message):
    __slots__ = ("stream", "kind", "run", "trace", "lasts_s", "limit")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    LASTS_S_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    stream: int
    kind: str
    run: str
    trace: str
    lasts_s: float
    limit: int
    def __init__(self, stream: _Optional[int] = ..., kind: _Optional[str] = ..., run: _Optional[str] = ..., trace: _Optional[str] = ..., lasts_s: _Optional[float] = ..., limit: _Optional[int] = ...) -> None: ...

class StreamData(_message.Message):
    __slots__ = ("stream", "offset")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    stream: int
    offset: int
    def __init__(self, stream: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...

class StreamCredit(_message.Message):
    __slots__ = ("stream", "received", "limit", "held", "ended")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    stream: int
    received: int
    limit: int
    held: int
    ended: bool
    def __init__(self, stream: _Optional[int] = ..., received: _Optional[int] = ..., limit: _Optional[int] = ..., held: _Optional[int] = ..., ended: _Optional[bool] = ...) -> None: ...

class StreamEnd(_message.Message):
    __slots__ = ("stream", "offset", "code", "message")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    stream: int
    offset: int
    code: str
    message: str
    def __init__(self, stream: _Optional[int] = ..., offset: _Optional[int] = ..., code: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class Ping(_message.Message):
    __slots__ = ("nonce",)
    NONCE_FIELD_NUMBER: _ClassVar[int]
    nonce: int
    def __init__(self, nonce: _Optional[int] = ...) -> None: ...

class Pong(_message.Message):
    __slots__ = ("nonce",)
    NONCE_FIELD_NUMBER: _ClassVar[int]
    nonce: int
    def __init__(self, nonce: _Optional[int] = ...) -> None: ...
