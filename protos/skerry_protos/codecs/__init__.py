"""Codecs: an update, or a model sent to many, in fewer bytes. Where to start: `updates.py`.

An update is what training changed: trained minus received, which both sides can compute from. A
codec is pure: arrays, its feedback and its dice go in; bytes and its next feedback come out.
This module knows the names and options only, and imports no numpy: the agent and the coordinator
pass codecs on, their children use them.
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, Self

from skerry_protos.errors import ConfigError, PeerError, SkerryError
from skerry_protos.settings import require_known

NONE, LOSSLESS = "none", "lossless"
NAMES = (NONE, LOSSLESS, "bf16", "int8", "int4", "topk", "powersgd")
BROADCASTS = (NONE, LOSSLESS, "bf16", "int8")
"""Codecs for what many devices are sent: without feedback, and good to weights themselves."""
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "int8": ("block",),
    "int4": ("block",),
    "topk": ("ratio",),
    "powersgd": ("rank",),
}
BLOCK = {"int8": 128, "int4": 64}
"""Elements that share a scale, unless the options say otherwise."""
BLOCK_LEAST, BLOCK_MOST = 16, 65536
RANK_MOST = 1024
FEEDBACK = frozenset({"topk", "powersgd"})
"""Codecs that leave something out which chance does not make good: they keep it for later."""
NEEDS_ZSTD = (LOSSLESS,)


STYPE = "skerry.coded"
"""The serialisation type of the one opaque tensor that stands for a coded group of arrays."""


class CodecError(SkerryError):
    """A codec cannot take these values (NaN, infinity, or beyond its range)."""

    code = "codec"


class CodedError(PeerError):
    """Coded bytes are malformed, or say they are more than they may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """A codec by name, with its options; 0 is the codec's own default."""

    name: str = NONE
    ratio: float = 0.01  # topk: the share of the elements that is sent
    rank: int = 4  # powersgd: columns of the two factors
    block: int = 0  # int8, int4: elements that share a scale

    def __post_init__(self) -> None:
        if not (math.isfinite(self.ratio) and 0 < self.ratio <= 1):
            raise ConfigError(
                f"codec {self.name}: ratio is {self.ratio}; expected above 0, up to 1"
            )
        if not 1 <= self.rank <= RANK_MOST:
            raise ConfigError(f"codec {self.name}: rank is {self.rank}; expected 1 to {RANK_MOST}")
        if self.block and not BLOCK_LEAST <= self.block <= BLOCK_MOST:
            raise ConfigError(
                f"codec {self.name}: block is {self.block}; "
                f"expected {BLOCK_LEAST} to {BLOCK_MOST} elements"
            )

    @classmethod
    def parse(cls, said: object, *, source: str) -> Self:
        """Return the codec that a name or a table says; ConfigError names the nearest valid one."""
        if isinstance(said, str):
            said = {"name": said}
        if not isinstance(said, Mapping) or not isinstance(said.get("name"), str):
            raise ConfigError(
                f"{source} is {said!r:.80}; expected a codec's name, or a table", hint=_known()
            )
        name = said["name"]
        if name not in NAMES:
            near = difflib.get_close_matches(name.lower(), NAMES, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else _known()
            raise ConfigError(f"{source}: there is no codec {name[:80]!r}", hint=hint)
        options: dict[str, Any] = {key: each for key, each in said.items() if key != "name"}
        for key, value in options.items():
            require_known(key, OPTIONS.get(name, ()), source=f"{source} ({name})")
            kinds = (int, float) if key == "ratio" else (int,)
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise ConfigError(f"{source} ({name}): {key} is {value!r:.80}; expected a number")
        try:
            return cls(name=name, **options)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error.message}") from error

    def to_json(self) -> dict[str, Any]:
        """Return the codec as `parse` takes it: its name, and the options it has."""
        return {"name": self.name} | {key: getattr(self, key) for key in OPTIONS.get(self.name, ())}

    @property
    def scale_block(self) -> int:
        """Return how many elements share a scale."""
        return self.block or BLOCK.get(self.name, BLOCK["int8"])

    @property
    def lossy(self) -> bool:
        """Return whether what comes out may differ from what went in."""
        return self.name not in (NONE, LOSSLESS)

    def __str__(self) -> str:
        own = [(key, getattr(self, key)) for key in OPTIONS.get(self.name, ())]
        return self.name + "".join(f",{key}={value}" for key, value in own if value)


def parse_broadcast(name: object, *, source: str) -> str:
    """Return the name of a codec for what many devices are sent, or raise ConfigError."""
    if name not in BROADCASTS:
        near = difflib.get_close_matches(str(name).lower(), BROADCASTS, n=1, cutoff=0.5)
        known = "known: " + ", ".join(BROADCASTS)
        hint = f"did you mean {near[0]!r}?" if near else known
        raise ConfigError(f"{source}: {name!r:.80} cannot code what is broadcast", hint=hint)
    return str(name)


@cache
def installed() -> tuple[str, ...]:
    """Return the codecs that work here: all need numpy, `lossless` also zstandard."""
    if find_spec("numpy") is None:
        return ()
    squeezes = find_spec("zstandard") is not None
    return tuple(name for name in NAMES[1:] if squeezes or name not in NEEDS_ZSTD)


def _known() -> str:
    return "known: " + ", ".join(NAMES)
