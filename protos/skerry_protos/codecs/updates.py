"""Updates and models, whole: groups of tensors coded into one, and back. Start here.

    coded, feedback = encode_update(codec, received, trained, feedback, rng)
    for name, tensor in decode_update(coded, received): ...

With error feedback (topk, powersgd) what a round did not send is added to the next update:
p = u + e, send C(p), keep e' = p - C(p). What was sent plus what is kept is what was learned.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from skerry_protos.codecs import FEEDBACK, LOSSLESS, STYPE, Codec, CodecError, CodedError
from skerry_protos.codecs.coded import Coded, Look, read, write
from skerry_protos.codecs.exact import word_of
from skerry_protos.codecs.floats import LOSSY, Floats, apply, update
from skerry_protos.codecs.methods import Made, Method, change_of, code, exact_bytes, exactly
from skerry_protos.records import LIMITS, RecordLimits, Records
from skerry_protos.tensors import Tensor

Group = Mapping[str, Tensor]

ARRAYS = "arrays"
EXACT = frozenset({Method.EXACT, Method.DIFFERENCE})
RESIDUAL, WARM = "residual", "warm"


@dataclass(frozen=True, slots=True)
class Feedback:
    """What a codec keeps from one round to the next: what was not sent, and powersgd's factors."""

    residual: Mapping[str, Floats] = field(default_factory=dict)  # flat
    warm: Mapping[str, Floats] = field(default_factory=dict)  # columns x rank

    def to_records(self) -> Records:
        """Return it as it is kept on the disk."""
        return Records(
            arrays={
                RESIDUAL: {name: Tensor.of(one) for name, one in self.residual.items()},
                WARM: {name: Tensor.of(one) for name, one in self.warm.items()},
            }
        )

    @classmethod
    def from_records(cls, records: Records) -> Self:
        """Return what was kept; what is not float32 is left out."""

        def floats(group: str) -> dict[str, Floats]:
            found = records.arrays.get(group, {})
            return {
                name: one.float32() for name, one in found.items() if one.dtype.name == "FLOAT32"
            }

        return cls(floats(RESIDUAL), floats(WARM))


def alike(sent: Group, answered: Group) -> bool:
    """Return whether an answer's tensors are those that were sent, by name, type and shape."""
    return bool(sent) and [Look.of(*one) for one in sent.items()] == [
        Look.of(*one) for one in answered.items()
    ]


def encode_update(
    codec: Codec,
    received: Group,
    trained: Group,
    feedback: Feedback,
    rng: np.random.Generator,
    *,
    exact: bool = True,
) -> tuple[Tensor, Feedback]:
    """Return trained - received as one opaque tensor, and the feedback for the next round.

    Without `exact` the two sides hold different weights (the model was broadcast with loss), and
    `lossless` sends the update as float32. A tensor that a codec cannot take (NaN, infinity) is
    sent as it is, and its feedback stays: who reads it refuses it by name.
    """
    if not alike(received, trained):
        raise CodecError("the trained arrays are not like those received")
    made: list[tuple[Look, Made]] = []
    residual, warm = dict[str, Floats](), dict[str, Floats]()
    for name, tensor in trained.items():
        look = Look.of(name, tensor)
        one = None
        if tensor.dtype in LOSSY and not tensor.stype and (codec.lossy or not exact):
            change = update(tensor, received[name])
            kept = feedback.residual.get(name) if codec.name in FEEDBACK else None
            if kept is not None and kept.size == change.size:
                change += kept.reshape(-1)
            try:
                one = code(codec, change, look.shape, rng=rng, warm=feedback.warm.get(name))
            except CodecError:
                if not exact:
                    one = code(Codec(name=LOSSLESS), change, look.shape, rng=None)
                if kept is not None:
                    residual[name] = kept
            else:
                if codec.name in FEEDBACK:
                    change -= _change(one, look)
                    residual[name] = change
                if one.warm is not None:
                    warm[name] = one.warm
        made.append((look, one if one is not None else exactly(tensor, received[name])))
    return _opaque(write(made, relative=True)), Feedback(residual, warm)


def decode_update(
    coded: Tensor, held: Group, limits: RecordLimits = LIMITS
) -> Iterator[tuple[str, Tensor]]:
    """Yield held + update for each tensor, one at a time, or raise CodedError.

    What does not look like `held`, name by name, is refused before any of it is opened.
    """
    relative, tensors = read(coded.data, limits)
    if not relative:
        raise CodedError("coded arrays are no update")
    if [one.look for one in tensors] != [Look.of(*one) for one in held.items()]:
        raise CodedError("a coded update is not of the arrays that were sent")
    return ((one.look.name, _decoded(one, held[one.look.name])) for one in tensors)


def encode_model(codec: Codec, arrays: Group) -> Tensor:
    """Return a group of tensors as one opaque tensor, for whoever holds nothing of it yet.

    Rounding is to the nearest: all receivers get the same, and the sender keeps the exact weights.
    """
    made: list[tuple[Look, Made]] = []
    for name, tensor in arrays.items():
        look = Look.of(name, tensor)
        one = None
        if codec.lossy and tensor.dtype in LOSSY and not tensor.stype:
            try:
                one = code(codec, update(tensor, None), look.shape, rng=None)
            except CodecError:
                one = None
        made.append((look, one if one is not None else exactly(tensor, None)))
    return _opaque(write(made, relative=False))


def decode_model(coded: Tensor, limits: RecordLimits = LIMITS) -> tuple[dict[str, Tensor], bool]:
    """Return the tensors, and whether they are exactly those that were coded; or CodedError."""
    relative, tensors = read(coded.data, limits)
    if relative:
        raise CodedError("coded arrays are an update, not a model")
    made = {one.look.name: _decoded(one, None) for one in tensors}
    return made, all(one.method in EXACT for one in tensors)


def is_coded(group: Group) -> bool:
    """Return whether a group is coded: one opaque tensor of our type."""
    return len(group) == 1 and next(iter(group.values())).stype == STYPE


def the_coded(group: Group) -> Tensor:
    """Return the one tensor of a coded group."""
    return next(iter(group.values()))


def coded_group(coded: Tensor) -> dict[str, Tensor]:
    """Return the group that stands for a coded one."""
    return {STYPE: coded}


def group_to_code(records: Records) -> str | None:
    """Return the name of the group of arrays that is the model: "arrays", or the only one."""
    if ARRAYS in records.arrays:
        return ARRAYS
    return next(iter(records.arrays)) if len(records.arrays) == 1 else None


def _opaque(data: bytes) -> Tensor:
    return Tensor.opaque(data, STYPE, "", ())


def _change(made: Made, look: Look) -> Floats:
    """Return the update as the receiver will see it."""
    size = int(np.prod(look.shape, dtype=np.int64))
    return change_of(made.method, made.setting, look.shape, size, list(made.parts))


def _decoded(one: Coded, held: Tensor | None) -> Tensor:
    look, parts = one.look, one.open()
    if one.method in EXACT:
        return look.over(exact_bytes(one.method, parts, word_of(look.dtype), held))
    if look.dtype not in LOSSY or look.stype:
        raise CodedError(f"{look.name[:80]!r} of {look.dtype.name} came as an update with loss")
    size = int(np.prod(look.shape, dtype=np.int64))
    change = change_of(one.method, one.setting, look.shape, size, parts)
    return apply(change, held, dtype=look.dtype, shape=look.shape)
