from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Update(_message.Message):
    __slots__ = ("number", "director")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    DIRECTOR_FIELD_NUMBER: _ClassVar[int]
    number: int
    director: bytes
    def __init__(self, number: _Optional[int] = ..., director: _Optional[bytes] = ...) -> None: ...

class UpdateReport(_message.Message):
    __slots__ = ("model", "rollout", "target", "digest", "phase", "why", "readings", "sequence", "unix_time_s", "serving", "serving_digest", "choice")
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
    CHOICE_FIELD_NUMBER: _ClassVar[int]
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
    choice: Choice
    def __init__(self, model: _Optional[str] = ..., rollout: _Optional[str] = ..., target: _Optional[str] = ..., digest: _Optional[bytes] = ..., phase: _Optional[str] = ..., why: _Optional[str] = ..., readings: _Optional[_Mapping[str, float]] = ..., sequence: _Optional[int] = ..., unix_time_s: _Optional[float] = ..., serving: _Optional[str] = ..., serving_digest: _Optional[bytes] = ..., choice: _Optional[_Union[Choice, _Mapping]] = ...) -> None: ...

class Choice(_message.Message):
    __slots__ = ("serves", "why", "candidates")
    SERVES_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    serves: str
    why: str
    candidates: _containers.RepeatedCompositeFieldContainer[Candidate]
    def __init__(self, serves: _Optional[str] = ..., why: _Optional[str] = ..., candidates: _Optional[_Iterable[_Union[Candidate, _Mapping]]] = ...) -> None: ...

class Candidate(_message.Message):
    __slots__ = ("target", "accuracy", "latency_s", "energy_j", "energy_source", "memory_bytes", "bad", "pareto")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    LATENCY_S_FIELD_NUMBER: _ClassVar[int]
    ENERGY_J_FIELD_NUMBER: _ClassVar[int]
    ENERGY_SOURCE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    BAD_FIELD_NUMBER: _ClassVar[int]
    PARETO_FIELD_NUMBER: _ClassVar[int]
    target: str
    accuracy: float
    latency_s: float
    energy_j: float
    energy_source: str
    memory_bytes: float
    bad: str
    pareto: bool
    def __init__(self, target: _Optional[str] = ..., accuracy: _Optional[float] = ..., latency_s: _Optional[float] = ..., energy_j: _Optional[float] = ..., energy_source: _Optional[str] = ..., memory_bytes: _Optional[float] = ..., bad: _Optional[str] = ..., pareto: _Optional[bool] = ...) -> None: ...
