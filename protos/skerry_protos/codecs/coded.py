"""Coded arrays as bytes: a header that says how each tensor is coded, and the parts.

`write` and `read` are the two ends. What arrives is somebody's word: every size follows from shapes
that are bounded, parts lie one after another, and no byte is left over.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from google.protobuf.message import DecodeError

from skerry_protos.codecs import CodedError
from skerry_protos.codecs.exact import word_of
from skerry_protos.codecs.methods import Made, Method, Room, rooms
from skerry_protos.codecs.packing import restore, squeeze
from skerry_protos.records import LIMITS, RecordLimits
from skerry_protos.tensors import STYPE_LIMIT, DType, Tensor, nbytes_of
from skerry_protos.v1 import codecs_pb2 as pb

MAGIC = b"SKC1"
_HEAD = struct.Struct("<4sI")


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a tensor is, without its elements."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    stype: str = ""
    stype_dtype: str = ""
    stype_shape: tuple[int, ...] = ()

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> "Look":
        """Return how a tensor looks."""
        return cls(
            name=name,
            dtype=tensor.dtype,
            shape=tensor.shape,
            stype=tensor.stype,
            stype_dtype=tensor.stype_dtype,
            stype_shape=tensor.stype_shape,
        )

    def over(self, data: memoryview) -> Tensor:
        """Return the tensor that looks so, over its bytes."""
        return Tensor(
            dtype=self.dtype,
            shape=self.shape,
            data=data,
            stype=self.stype,
            stype_dtype=self.stype_dtype,
            stype_shape=self.stype_shape,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Coded:
    """One coded tensor as it lies in the bytes: nothing of it is opened yet."""

    look: Look
    method: Method
    setting: int
    parts: tuple[tuple[memoryview, bool, Room], ...]

    def open(self) -> list[memoryview]:
        """Return the parts, opened, or raise CodedError."""
        made = []
        for data, squeezed, room in self.parts:
            if room.most:
                if squeezed or data.nbytes > room.nbytes:
                    raise CodedError(f"{self.look.name[:80]!r}: a part is too long or squeezed")
                made.append(data)
            else:
                made.append(restore(data, squeezed=squeezed, nbytes=room.nbytes))
        return made


def write(tensors: Sequence[tuple[Look, Made]], *, relative: bool) -> bytes:
    """Return the bytes of coded tensors."""
    header = pb.Coded(relative=relative)
    body: list[bytes | bytearray | memoryview] = []
    for look, made in tensors:
        spec = header.tensors.add(
            name=look.name,
            dtype=look.dtype,
            shape=look.shape,
            method=made.method,
            setting=made.setting,
            stype=look.stype,
            stype_dtype=look.stype_dtype,
            stype_shape=look.stype_shape,
        )
        size, width = _extent(look, LIMITS)
        for part, room in zip(
            made.parts, rooms(made.method, made.setting, look.shape, size, width), strict=True
        ):
            data, squeezed = (part, False) if room.most else squeeze(part)
            spec.parts.add(size=memoryview(data).nbytes, zstd=squeezed)
            body.append(data)
    head = header.SerializeToString(deterministic=True)
    return b"".join([_HEAD.pack(MAGIC, len(head)), head, *body])


def read(data: bytes | memoryview, limits: RecordLimits = LIMITS) -> tuple[bool, list[Coded]]:
    """Return whether values are relative, and the coded tensors; CodedError names what is wrong.

    Every shape is bounded by `limits`, and so is what all tensors together open to.
    """
    view = memoryview(data).cast("B").toreadonly()
    if view.nbytes < _HEAD.size:
        raise CodedError(f"coded arrays of {view.nbytes} bytes")
    magic, length = _HEAD.unpack_from(view)
    if magic != MAGIC:
        raise CodedError(f"coded arrays begin with {bytes(magic)!r}; expected {MAGIC!r}")
    if length > min(limits.header, view.nbytes - _HEAD.size):
        raise CodedError(f"the header of coded arrays has {length} bytes; more than there are")
    try:
        header = pb.Coded.FromString(bytes(view[_HEAD.size : _HEAD.size + length]))
    except DecodeError as error:
        raise CodedError(f"the header of coded arrays does not parse: {error}") from error
    if len(header.tensors) > limits.tensors:
        raise CodedError(f"{len(header.tensors)} coded tensors; expected at most {limits.tensors}")
    return header.relative, list(_tensors(header, view[_HEAD.size + length :], limits))


def _tensors(header: pb.Coded, body: memoryview, limits: RecordLimits) -> Iterator[Coded]:
    at, left, names = 0, limits.nbytes, set[str]()
    for spec in header.tensors:
        look, method = _look(spec, limits)
        if look.name in names:
            raise CodedError(f"two coded tensors are named {look.name[:80]!r}")
        names.add(look.name)
        size, width = _extent(look, replace(limits, nbytes=left))
        left -= size * width
        expected = rooms(method, spec.setting, look.shape, size, width)
        if len(spec.parts) != len(expected):
            raise CodedError(
                f"{look.name[:80]!r} came in {len(spec.parts)} parts; expected {len(expected)}"
            )
        parts = []
        for part, room in zip(spec.parts, expected, strict=True):
            if part.size > body.nbytes - at:
                raise CodedError(f"{look.name[:80]!r} ends beyond the bytes that came")
            parts.append((body[at : at + part.size], part.zstd, room))
            at += part.size
        yield Coded(look=look, method=method, setting=spec.setting, parts=tuple(parts))
    if at != body.nbytes:
        raise CodedError(f"coded arrays have {body.nbytes - at} bytes after the last part")


def _look(spec: pb.CodedTensor, limits: RecordLimits) -> tuple[Look, Method]:
    try:
        dtype, method = DType(spec.dtype), Method(spec.method)
    except ValueError as error:
        raise CodedError(f"coded tensor {spec.name[:80]!r}: {error}") from error
    if max(len(spec.stype), len(spec.stype_dtype), len(spec.stype_shape)) > STYPE_LIMIT:
        raise CodedError(f"coded tensor {spec.name[:80]!r} has too long a serialisation type")
    if len(spec.name) > limits.name:
        raise CodedError(f"a coded tensor's name has {len(spec.name)} characters")
    look = Look(
        name=spec.name,
        dtype=dtype,
        shape=tuple(spec.shape),
        stype=spec.stype,
        stype_dtype=spec.stype_dtype,
        stype_shape=tuple(spec.stype_shape),
    )
    return look, method


def _extent(look: Look, limits: RecordLimits) -> tuple[int, int]:
    """Return a tensor's words and the bytes of each, or raise for a shape beyond the limit."""
    width = word_of(look.dtype)
    return nbytes_of(look.dtype, look.shape, max(16, limits.nbytes)) // width, width
