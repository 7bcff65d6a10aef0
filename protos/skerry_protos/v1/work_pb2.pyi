from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Task(_message.Message):
    __slots__ = ("message_type", "content", "group", "flower_run", "node", "run_config_json", "node_config_json", "app", "limits", "fresh_worker", "created_unix_s", "message_id", "ttl_s", "codec_json", "beside")
    MESSAGE_TYPE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    FLOWER_RUN_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    RUN_CONFIG_JSON_FIELD_NUMBER: _ClassVar[int]
    NODE_CONFIG_JSON_FIELD_NUMBER: _ClassVar[int]
    APP_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    FRESH_WORKER_FIELD_NUMBER: _ClassVar[int]
    CREATED_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    CODEC_JSON_FIELD_NUMBER: _ClassVar[int]
    BESIDE_FIELD_NUMBER: _ClassVar[int]
    message_type: str
    content: bytes
    group: str
    flower_run: int
    node: int
    run_config_json: str
    node_config_json: str
    app: AppRef
    limits: Limits
    fresh_worker: bool
    created_unix_s: float
    message_id: str
    ttl_s: float
    codec_json: str
    beside: bytes
    def __init__(self, message_type: _Optional[str] = ..., content: _Optional[bytes] = ..., group: _Optional[str] = ..., flower_run: _Optional[int] = ..., node: _Optional[int] = ..., run_config_json: _Optional[str] = ..., node_config_json: _Optional[str] = ..., app: _Optional[_Union[AppRef, _Mapping]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., fresh_worker: _Optional[bool] = ..., created_unix_s: _Optional[float] = ..., message_id: _Optional[str] = ..., ttl_s: _Optional[float] = ..., codec_json: _Optional[str] = ..., beside: _Optional[bytes] = ...) -> None: ...

class AppRef(_message.Message):
    __slots__ = ("kind", "name", "digest", "entry")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    kind: str
    name: str
    digest: bytes
    entry: str
    def __init__(self, kind: _Optional[str] = ..., name: _Optional[str] = ..., digest: _Optional[bytes] = ..., entry: _Optional[str] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("seconds", "memory_bytes", "output_bytes")
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_BYTES_FIELD_NUMBER: _ClassVar[int]
    seconds: float
    memory_bytes: int
    output_bytes: int
    def __init__(self, seconds: _Optional[float] = ..., memory_bytes: _Optional[int] = ..., output_bytes: _Optional[int] = ...) -> None: ...

class Reply(_message.Message):
    __slots__ = ("task", "content", "failure", "report")
    TASK_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    task: str
    content: bytes
    failure: Failure
    report: WorkReport
    def __init__(self, task: _Optional[str] = ..., content: _Optional[bytes] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., report: _Optional[_Union[WorkReport, _Mapping]] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("code", "reason", "log_tail")
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    LOG_TAIL_FIELD_NUMBER: _ClassVar[int]
    code: int
    reason: str
    log_tail: str
    def __init__(self, code: _Optional[int] = ..., reason: _Optional[str] = ..., log_tail: _Optional[str] = ...) -> None: ...

class WorkReport(_message.Message):
    __slots__ = ("queued_s", "download_s", "compute_s", "cpu_s", "peak_rss_bytes", "warm", "codec", "plain_bytes", "energy_j", "held_bytes")
    QUEUED_S_FIELD_NUMBER: _ClassVar[int]
    DOWNLOAD_S_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_S_FIELD_NUMBER: _ClassVar[int]
    CPU_S_FIELD_NUMBER: _ClassVar[int]
    PEAK_RSS_BYTES_FIELD_NUMBER: _ClassVar[int]
    WARM_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    PLAIN_BYTES_FIELD_NUMBER: _ClassVar[int]
    ENERGY_J_FIELD_NUMBER: _ClassVar[int]
    HELD_BYTES_FIELD_NUMBER: _ClassVar[int]
    queued_s: float
    download_s: float
    compute_s: float
    cpu_s: float
    peak_rss_bytes: int
    warm: bool
    codec: str
    plain_bytes: int
    energy_j: float
    held_bytes: int
    def __init__(self, queued_s: _Optional[float] = ..., download_s: _Optional[float] = ..., compute_s: _Optional[float] = ..., cpu_s: _Optional[float] = ..., peak_rss_bytes: _Optional[int] = ..., warm: _Optional[bool] = ..., codec: _Optional[str] = ..., plain_bytes: _Optional[int] = ..., energy_j: _Optional[float] = ..., held_bytes: _Optional[int] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("unix_time_s", "agent_version", "profile", "uptime_s", "load1", "memory_total_bytes", "memory_available_bytes", "disk_free_bytes", "temperature_c", "battery_percent", "charging", "metered", "state", "waiting_for", "capabilities", "versions", "tasks", "arch", "cpus", "codecs", "energy_today_j", "energy_source", "features", "labels")
    class VersionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    UNIX_TIME_S_FIELD_NUMBER: _ClassVar[int]
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    LOAD1_FIELD_NUMBER: _ClassVar[int]
    MEMORY_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_AVAILABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_C_FIELD_NUMBER: _ClassVar[int]
    BATTERY_PERCENT_FIELD_NUMBER: _ClassVar[int]
    CHARGING_FIELD_NUMBER: _ClassVar[int]
    METERED_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    WAITING_FOR_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    ARCH_FIELD_NUMBER: _ClassVar[int]
    CPUS_FIELD_NUMBER: _ClassVar[int]
    CODECS_FIELD_NUMBER: _ClassVar[int]
    ENERGY_TODAY_J_FIELD_NUMBER: _ClassVar[int]
    ENERGY_SOURCE_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    unix_time_s: float
    agent_version: str
    profile: str
    uptime_s: float
    load1: float
    memory_total_bytes: int
    memory_available_bytes: int
    disk_free_bytes: int
    temperature_c: float
    battery_percent: float
    charging: bool
    metered: bool
    state: str
    waiting_for: str
    capabilities: _containers.RepeatedScalarFieldContainer[str]
    versions: _containers.ScalarMap[str, str]
    tasks: _containers.RepeatedScalarFieldContainer[str]
    arch: str
    cpus: int
    codecs: _containers.RepeatedScalarFieldContainer[str]
    energy_today_j: float
    energy_source: str
    features: _containers.RepeatedScalarFieldContainer[str]
    labels: _containers.ScalarMap[str, str]
    def __init__(self, unix_time_s: _Optional[float] = ..., agent_version: _Optional[str] = ..., profile: _Optional[str] = ..., uptime_s: _Optional[float] = ..., load1: _Optional[float] = ..., memory_total_bytes: _Optional[int] = ..., memory_available_bytes: _Optional[int] = ..., disk_free_bytes: _Optional[int] = ..., temperature_c: _Optional[float] = ..., battery_percent: _Optional[float] = ..., charging: _Optional[bool] = ..., metered: _Optional[bool] = ..., state: _Optional[str] = ..., waiting_for: _Optional[str] = ..., capabilities: _Optional[_Iterable[str]] = ..., versions: _Optional[_Mapping[str, str]] = ..., tasks: _Optional[_Iterable[str]] = ..., arch: _Optional[str] = ..., cpus: _Optional[int] = ..., codecs: _Optional[_Iterable[str]] = ..., energy_today_j: _Optional[float] = ..., energy_source: _Optional[str] = ..., features: _Optional[_Iterable[str]] = ..., labels: _Optional[_Mapping[str, str]] = ...) -> None: ...

class LogLines(_message.Message):
    __slots__ = ("source", "lines")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    LINES_FIELD_NUMBER: _ClassVar[int]
    source: str
    lines: _containers.RepeatedCompositeFieldContainer[LogLine]
    def __init__(self, source: _Optional[str] = ..., lines: _Optional[_Iterable[_Union[LogLine, _Mapping]]] = ...) -> None: ...

class LogLine(_message.Message):
    __slots__ = ("unix_time_s", "level", "text")
    UNIX_TIME_S_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    unix_time_s: float
    level: str
    text: str
    def __init__(self, unix_time_s: _Optional[float] = ..., level: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("tasks", "reason", "run_over")
    TASKS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    RUN_OVER_FIELD_NUMBER: _ClassVar[int]
    tasks: _containers.RepeatedScalarFieldContainer[str]
    reason: str
    run_over: bool
    def __init__(self, tasks: _Optional[_Iterable[str]] = ..., reason: _Optional[str] = ..., run_over: _Optional[bool] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("task", "fraction", "text")
    TASK_FIELD_NUMBER: _ClassVar[int]
    FRACTION_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    task: str
    fraction: float
    text: str
    def __init__(self, task: _Optional[str] = ..., fraction: _Optional[float] = ..., text: _Optional[str] = ...) -> None: ...
