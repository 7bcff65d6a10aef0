from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class Update(_message.Message):
    __slots__ = ("number", "director")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    DIRECTOR_FIELD_NUMBER: _ClassVar[int]
    number: int
    director: bytes
    def __init__(self, number: _Optional[int] = ..., director: _Optional[bytes] = ...) -> None: ...

class UpdateReport(_message.Message):
    __slots__ = ("model", "rollout", "target", "digest", "phase", "why", "readings", "sequence", "unix_time_s", "serving", "serving_digest")
    class ReadingsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ROLLOUT_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    READINGS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    UNIX_TIME_S_FIELD_NUMBER: _ClassVar[int]
    SERVING_FIELD_NUMBER: _ClassVar[int]
    SERVING_DIGEST_FIELD_NUMBER: _ClassVar[int]
    model: str
    rollout: str
    target: str
    digest: bytes
    phase: str
    why: str
    readings: _containers.ScalarMap[str, float]
    sequence: int
    unix_time_s: float
    serving: str
    serving_digest: bytes
    def __init__(self, model: _Optional[str] = ..., rollout: _Optional[str] = ..., target: _Optional[str] = ..., digest: _Optional[bytes] = ..., phase: _Optional[str] = ..., why: _Optional[str] = ..., readings: _Optional[_Mapping[str, float]] = ..., sequence: _Optional[int] = ..., unix_time_s: _Optional[float] = ..., serving: _Optional[str] = ..., serving_digest: _Optional[bytes] = ...) -> None: ...
