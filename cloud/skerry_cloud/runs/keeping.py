"""State as a records file and back: numbers, texts, arrays and what is made of them; never code.

What a checkpoint holds. `pack` turns a tree of plain values into Records, `unpack` turns them back;
two names of one list or array stay two names of one. What it does not know raises UnkeepableError:
then no checkpoint is made. Other kinds (Flower's records) join as `Form`s.
"""

import base64
import json
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from skerry_protos.errors import PeerError, SkerryError
from skerry_protos.records import Records
from skerry_protos.tensors import Tensor

TREE, ARRAYS = "tree", "arrays"
DEPTH = 64
_SMALL = 1024
_PART = 512 * 1024
"""Bytes of JSON in one setting of the records' header."""


class UnkeepableError(SkerryError):
    """A value is of a kind that is not kept."""


@dataclass(frozen=True, slots=True)
class Form:
    """Another kind of value: what it is, and how it becomes a plain one and back."""

    kind: type
    pack: Callable[[Any], Any]
    unpack: Callable[[Any], Any]


Forms = Mapping[str, Form]


def pack(tree: Any, forms: Forms | None = None) -> Records:
    """Return a tree as records, or raise UnkeepableError naming what is in the way."""
    packer = _Packer(forms or {})
    text = json.dumps(packer.pack(tree, "state", 0), separators=(",", ":"))
    parts = [text[begin : begin + _PART] for begin in range(0, len(text), _PART)]
    return Records(arrays={ARRAYS: packer.arrays}, configs={TREE: {"json": parts}})


def unpack(records: Records, forms: Forms | None = None) -> Any:
    """Return the tree in records, or raise PeerError when they hold none."""
    try:
        parts = records.configs[TREE]["json"]
        assert isinstance(parts, list)
        tree = json.loads("".join(str(part) for part in parts))
        return _Unpacker(records.arrays[ARRAYS], forms or {}).unpack(tree)
    except (KeyError, ValueError, TypeError, AssertionError, RecursionError) as error:
        raise PeerError(f"the checkpoint cannot be read: {type(error).__name__}") from error


class _Packer:
    def __init__(self, forms: Forms) -> None:
        self.arrays: dict[str, Tensor] = {}
        self._forms = forms
        self._seen: dict[int, int] = {}
        self._held: list[Any] = []  # so that no id is used twice

    def pack(self, value: Any, where: str, depth: int) -> Any:
        """Return a value as JSON; what may be met twice as {kind, its number, itself}."""
        if depth > DEPTH:
            raise UnkeepableError(f"{where} is nested too deeply")
        if value is None or type(value) in {bool, int, float, str}:
            return value
        if type(value) is bytes:
            if len(value) > _SMALL:
                return {"B": self._array(Tensor.of(np.frombuffer(value, np.uint8)))}
            return {"b": base64.b85encode(value).decode()}
        if type(value) is tuple:
            return {"t": [self.pack(one, where, depth + 1) for one in value]}
        if isinstance(value, np.generic):
            return {"n": self._array(Tensor.of(np.asarray(value)))}
        if id(value) in self._seen:
            return {"r": self._seen[id(value)]}
        self._seen[id(value)] = len(self._held)
        self._held.append(value)
        return self._shared(value, where, depth + 1)

    def _shared(self, value: Any, where: str, depth: int) -> Any:
        kind = type(value)
        if kind is list:
            return {"l": [self.pack(one, where, depth) for one in value]}
        if kind is dict or kind is OrderedDict:
            pairs = [
                [self.pack(key, where, depth), self.pack(one, f"{where}.{key}"[:200], depth)]
                for key, one in value.items()
            ]
            return {"d" if kind is dict else "o": pairs}
        if kind is deque:
            return {"q": [self.pack(one, where, depth) for one in value], "m": value.maxlen}
        if kind is set:
            return {"s": [self.pack(one, where, depth) for one in value]}
        if kind is np.ndarray:
            return {"a": self._array(_tensor(value, where))}
        if kind is Tensor:
            return {"T": self._array(value)}
        for name, form in self._forms.items():
            if kind is form.kind:
                return {"x": name, "v": self.pack(form.pack(value), where, depth)}
        raise UnkeepableError(f"{where} is {kind.__module__}.{kind.__qualname__}")

    def _array(self, tensor: Tensor) -> str:
        name = str(len(self.arrays))
        self.arrays[name] = tensor
        return name


def _tensor(value: "np.ndarray[Any, Any]", where: str) -> Tensor:
    try:
        return Tensor.of(np.ascontiguousarray(value).reshape(value.shape))
    except (SkerryError, TypeError, ValueError, KeyError) as error:
        raise UnkeepableError(f"{where} is an array of {value.dtype}") from error


class _Unpacker:
    def __init__(self, arrays: Mapping[str, Tensor], forms: Forms) -> None:
        self._arrays = arrays
        self._forms = forms
        self._made: list[Any] = []

    def unpack(self, tree: Any) -> Any:
        """Return the value of JSON as `pack` made it."""
        if not isinstance(tree, dict):
            return tree
        if "b" in tree:
            return base64.b85decode(tree["b"])
        if "B" in tree:
            return self._arrays[tree["B"]].numpy().tobytes()
        if "t" in tree:
            return tuple(self.unpack(one) for one in tree["t"])
        if "n" in tree:
            return self._arrays[tree["n"]].numpy()[()]
        if "r" in tree:
            return self._made[tree["r"]]
        place = len(self._made)
        self._made.append(None)
        return self._shared(tree, place)

    def _shared(self, tree: dict[str, Any], place: int) -> Any:
        made: Any
        if "l" in tree:
            made = self._made[place] = []
            made.extend(self.unpack(one) for one in tree["l"])
        elif "d" in tree or "o" in tree:
            made = self._made[place] = {} if "d" in tree else OrderedDict()
            for key, one in tree.get("d", tree.get("o", [])):
                made[self.unpack(key)] = self.unpack(one)
        elif "q" in tree:
            made = self._made[place] = deque(maxlen=tree["m"])
            made.extend(self.unpack(one) for one in tree["q"])
        elif "s" in tree:
            made = self._made[place] = {self.unpack(one) for one in tree["s"]}
        elif "a" in tree:
            # A copy: the file is mapped for reading only, and the owner may change it in place.
            made = self._made[place] = self._arrays[tree["a"]].numpy().copy()
        elif "T" in tree:
            made = self._made[place] = self._arrays[tree["T"]]
        else:
            made = self._made[place] = self._forms[tree["x"]].unpack(self.unpack(tree["v"]))
        return made
