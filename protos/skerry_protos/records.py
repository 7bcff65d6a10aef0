"""Records: what a task asks with and a reply answers with, whatever framework made it.

Named groups of tensors, metrics and settings, as Flower names them ("arrays", "metrics", "config").
On disk and on the wire they are one file (records.proto says how); reading it copies no tensor.
"""

import mmap
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from skerry_protos.errors import PeerError
from skerry_protos.tensors import STYPE_LIMIT, DType, Tensor, nbytes_of
from skerry_protos.v1 import records_pb2 as pb

MetricValue = int | float | list[int] | list[float]
ConfigValue = (
    int
    | float
    | str
    | bytes
    | bool
    | list[int]
    | list[float]
    | list[str]
    | list[bytes]
    | list[bool]
)

MAGIC = b"SKR1"
ALIGN = 64
_HEAD = struct.Struct("<4sI")


@dataclass(slots=True)
class Records:
    """Groups by name; one name is used once over all three kinds."""

    arrays: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    metrics: dict[str, dict[str, MetricValue]] = field(default_factory=dict)
    configs: dict[str, dict[str, ConfigValue]] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Return the bytes of all tensors."""
        return sum(tensor.nbytes for group in self.arrays.values() for tensor in group.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordLimits:
    """What a reader takes from a peer."""

    nbytes: int = 16 * 1024**3
    header: int = 16 * 1024**2
    groups: int = 256
    tensors: int = 100_000
    values: int = 100_000
    name: int = 1024


LIMITS = RecordLimits()


def encode(records: Records) -> list[bytes | memoryview]:
    """Return the file's parts in order; tensors are views, not copies."""
    return list(
        encode_each(
            records, (tensor for group in records.arrays.values() for tensor in group.values())
        )
    )


def encode_each(like: Records, tensors: Iterable[Tensor]) -> Iterator[bytes | memoryview]:
    """Yield a file's parts in order: `like`, with these tensors in place of its own.

    They look as its own do; each is asked for when its turn comes, and not held afterwards.
    """
    header = _header(like)
    specs = [spec for group in header.arrays for spec in group.tensors]
    head = _place(header, specs)
    yield from (_HEAD.pack(MAGIC, len(head)), head)
    at = _HEAD.size + len(head)
    for spec, tensor in zip(specs, tensors, strict=True):
        if (tensor.dtype, tensor.nbytes) != (spec.dtype, spec.nbytes):
            raise ValueError(f"the tensor in place of {spec.name!r} does not look like it")
        if tensor.nbytes:
            yield from (bytes(spec.offset - at), tensor.data)
            at = spec.offset + tensor.nbytes


def _place(header: pb.Records, specs: list[pb.TensorSpec]) -> bytes:
    """Give each tensor its offset and return the header.

    Offsets are varints, so the header's size depends on them: go on until it fits before the first.
    """
    start = ALIGN
    while True:
        at = start
        for spec in specs:
            spec.offset = at
            at += -(-spec.nbytes // ALIGN) * ALIGN
        head = header.SerializeToString(deterministic=True)
        needed = -(-(_HEAD.size + len(head)) // ALIGN) * ALIGN
        if needed <= start:
            return head
        start = needed


def apart(records: Records) -> tuple[Records, Records]:
    """Return the tensors alone and all else, each as Records; `together` is the way back.

    The same tensors make the same file then, whatever settings go with them.
    """
    rest = Records(metrics=records.metrics, configs=records.configs)
    return Records(arrays=records.arrays), rest


def together(tensors: Records, rest: Records) -> Records:
    """Return what `apart` took apart; PeerError when these are not its two parts."""
    names = [*tensors.arrays, *rest.metrics, *rest.configs]
    if tensors.metrics or tensors.configs or rest.arrays or len(set(names)) < len(names):
        raise PeerError("records that came in two parts do not fit together")
    return Records(arrays=tensors.arrays, metrics=rest.metrics, configs=rest.configs)


def size_of(parts: Iterable[bytes | memoryview]) -> int:
    """Return the bytes of the encoded parts."""
    return sum(memoryview(part).nbytes for part in parts)


def to_bytes(records: Records) -> bytes:
    """Return the file as one bytes (small records, inside a parcel's body)."""
    return b"".join(encode(records))


def write(records: Records, path: Path) -> None:
    """Write the file; who keeps it hashes it and makes it durable."""
    with path.open("wb") as file:
        for part in encode(records):
            file.write(part)


def read(path: Path, limits: RecordLimits = LIMITS) -> Records:
    """Return the records of a file; tensors are views of its mapping and keep it open."""
    with path.open("rb") as file:
        if not (size := file.seek(0, 2)):
            raise PeerError("a records file is empty")
        if size > limits.nbytes:
            raise PeerError(f"a records file has {size} bytes; expected at most {limits.nbytes}")
        return decode(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), limits)


def decode(
    buffer: bytes | bytearray | memoryview | mmap.mmap, limits: RecordLimits = LIMITS
) -> Records:
    """Return the records over `buffer`'s bytes, or raise PeerError naming what is wrong."""
    view = memoryview(buffer).cast("B").toreadonly()
    if view.nbytes > limits.nbytes:
        raise PeerError(f"records of {view.nbytes} bytes; expected at most {limits.nbytes}")
    if view.nbytes < _HEAD.size:
        raise PeerError(f"records of {view.nbytes} bytes; expected at least {_HEAD.size}")
    magic, length = _HEAD.unpack_from(view)
    if magic != MAGIC:
        raise PeerError(f"records begin with {bytes(magic)!r}; expected {MAGIC!r}")
    if length > min(limits.header, view.nbytes - _HEAD.size):
        raise PeerError(f"the records' header has {length} bytes; more than there are or allowed")
    try:
        header = pb.Records.FromString(bytes(view[_HEAD.size : _HEAD.size + length]))
    except DecodeError as error:
        raise PeerError(f"the records' header does not parse: {error}") from error
    return _records(header, view, _HEAD.size + length, limits)


def _records(header: pb.Records, view: memoryview, at: int, limits: RecordLimits) -> Records:
    names = _Names(limits)
    made = Records()
    for group in header.arrays:
        tensors = made.arrays[names.group(group.name)] = {}
        for spec in group.tensors:
            name = names.entry(spec.name, tensors)
            tensors[name], at = _tensor(spec, view, at, limits)
    if at != view.nbytes:
        raise PeerError(f"records have {view.nbytes - at} bytes after the last tensor")
    for metrics in header.metrics:
        values = made.metrics[names.group(metrics.name)] = {}
        for key, metric in metrics.values.items():
            values[names.entry(key, values)] = _metric(key, metric)
    for configs in header.configs:
        settings = made.configs[names.group(configs.name)] = {}
        for key, config in configs.values.items():
            settings[names.entry(key, settings)] = _config(key, config)
    return made


class _Names:
    """Counts and checks the names of one file."""

    def __init__(self, limits: RecordLimits) -> None:
        self._limits = limits
        self._groups: set[str] = set()
        self._entries = 0

    def group(self, name: str) -> str:
        if name in self._groups:
            raise PeerError(f"records have two groups named {name[:80]!r}")
        self._groups.add(self._checked(name))
        if len(self._groups) > self._limits.groups:
            raise PeerError(f"records have more than {self._limits.groups} groups")
        return name

    def entry(self, name: str, seen: Mapping[str, Any]) -> str:
        if name in seen:
            raise PeerError(f"records have two entries named {name[:80]!r} in one group")
        self._entries += 1
        if self._entries > max(self._limits.tensors, self._limits.values):
            raise PeerError("records have too many entries")
        return self._checked(name)

    def _checked(self, name: str) -> str:
        if len(name) > self._limits.name:
            raise PeerError(f"a name in records has {len(name)} characters: {name[:80]!r}…")
        return name


def _tensor(
    spec: pb.TensorSpec, view: memoryview, at: int, limits: RecordLimits
) -> tuple[Tensor, int]:
    """Return the tensor and where the next may begin; tensors lie in order and never overlap."""
    try:
        dtype = DType(spec.dtype)
    except ValueError as error:
        raise PeerError(f"tensor {spec.name[:80]!r} has the unknown type {spec.dtype}") from error
    nbytes = nbytes_of(dtype, spec.shape, limits.nbytes)
    if nbytes != spec.nbytes:
        raise PeerError(f"tensor {spec.name[:80]!r} says {spec.nbytes} bytes; its shape {nbytes}")
    if spec.stype and (dtype is not DType.UINT8 or len(spec.shape) != 1):
        raise PeerError(f"tensor {spec.name[:80]!r} is opaque but not bytes")
    if max(len(spec.stype), len(spec.stype_dtype), len(spec.stype_shape)) > STYPE_LIMIT:
        raise PeerError(f"tensor {spec.name[:80]!r} has too long a serialisation type")
    if not nbytes:
        data = memoryview(b"")
    else:
        if spec.offset % ALIGN or not at <= spec.offset < at + ALIGN:
            raise PeerError(f"tensor {spec.name[:80]!r} begins at {spec.offset}; expected by {at}")
        if (end := spec.offset + nbytes) > view.nbytes:
            raise PeerError(f"tensor {spec.name[:80]!r} ends at {end} of {view.nbytes} bytes")
        data, at = view[spec.offset : end], end
    tensor = Tensor(
        dtype=dtype,
        shape=tuple(spec.shape),
        data=data,
        stype=spec.stype,
        stype_dtype=spec.stype_dtype,
        stype_shape=tuple(spec.stype_shape),
    )
    return tensor, at


def _metric(key: str, metric: pb.Metric) -> MetricValue:
    match metric.WhichOneof("kind"):
        case "int":
            return metric.int
        case "float":
            return metric.float
        case "ints":
            return list(metric.ints.values)
        case "floats":
            return list(metric.floats.values)
    raise PeerError(f"metric {key[:80]!r} has no value")


def _config(key: str, config: pb.Config) -> ConfigValue:
    kind = config.WhichOneof("kind")
    if kind is None:
        raise PeerError(f"setting {key[:80]!r} has no value")
    value = getattr(config, kind)
    return list(value.values) if kind in _LISTS else value


_LISTS = frozenset({"ints", "floats", "texts", "datas", "flags"})
# bool before int: True is an int too.
_SCALAR = ((bool, "flag"), (int, "int"), (float, "float"), (str, "text"), (bytes, "data"))
_LIST = {"flag": "flags", "int": "ints", "float": "floats", "text": "texts", "data": "datas"}


def _header(records: Records) -> pb.Records:
    header = pb.Records()
    for name, tensors in records.arrays.items():
        group = header.arrays.add(name=name)
        for key, tensor in tensors.items():
            group.tensors.add(
                name=key,
                dtype=tensor.dtype,
                shape=tensor.shape,
                nbytes=tensor.nbytes,
                stype=tensor.stype,
                stype_dtype=tensor.stype_dtype,
                stype_shape=tensor.stype_shape,
            )
    for name, metrics in records.metrics.items():
        made = header.metrics.add(name=name)
        for key, value in metrics.items():
            _set(made.values[key], name, key, value, ("int", "float"))
    for name, configs in records.configs.items():
        settings = header.configs.add(name=name)
        for key, setting in configs.items():
            _set(settings.values[key], name, key, setting, tuple(_LIST))
    return header


def _set(
    to: pb.Metric | pb.Config, group: str, key: str, value: Any, allowed: tuple[str, ...]
) -> None:
    """Put a value into the right field, or raise TypeError or ValueError naming it."""
    many = isinstance(value, list | tuple)
    kinds = {_kind(item) for item in value} if many else {_kind(value)}
    if kinds == {"int", "float"}:
        kinds = {"float"}
    kind = next(iter(kinds), "int")  # an empty list has no type; it comes back as an empty list
    if len(kinds) > 1 or kind not in allowed:
        raise TypeError(
            f"{group}[{key!r}] is {value!r:.80}; expected {', '.join(allowed)} or a list"
        )
    try:
        if many:
            getattr(to, _LIST[kind]).values.extend(value)
            getattr(to, _LIST[kind]).SetInParent()
        else:
            setattr(to, kind, value)
    except ValueError as error:
        raise ValueError(f"{group}[{key!r}] is {value!r:.80}; expected 64 bits") from error


def _kind(value: object) -> str:
    for of, kind in _SCALAR:
        if isinstance(value, of):
            return kind
    return type(value).__name__
