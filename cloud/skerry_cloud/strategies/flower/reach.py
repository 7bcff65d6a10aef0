"""What a strategy's rounds change besides arrays: its attributes, and plain values of the app's.

An attribute of the strategy (or of one it wraps) is kept, or is of a kind that no round changes
(functions, classes, paths, loggers, devices), or makes a checkpoint impossible. Of the app's own
functions that a round calls (evaluate_fn, functions among the attributes, methods of the app's own
strategy, and the functions of the app's that these name), closures and globals are looked at too;
what is as it was when the strategy began is not kept again.
"""

import enum
import functools
import hashlib
import logging
import random
import re
import sys
import sysconfig
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from flwr.serverapp.strategy import Strategy
from skerry_protos import records as codec

from skerry_cloud.runs import keeping
from skerry_cloud.runs.keeping import Form, Forms, UnkeepableError

CODE = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial, type)
STILL = (*CODE, types.ModuleType, logging.Logger, PurePath, enum.Enum, re.Pattern, np.dtype)
"""Kinds that no round changes."""
PLAIN = (int, float, str, bytes, list, tuple, dict, set, deque, np.ndarray, np.generic)
BIT_GENERATORS = {"MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64"}


def _generator(state: Mapping[str, Any]) -> np.random.Generator:
    kind = state["bit_generator"]
    if kind not in BIT_GENERATORS:
        raise ValueError(f"a generator of kind {kind!r}")
    bits = getattr(np.random, kind)()
    bits.state = state
    return np.random.Generator(bits)


def _random(state: list[Any]) -> random.Random:
    version, words, gauss = state
    made = random.Random()  # noqa: S311 - the app's own
    made.setstate((version, tuple(words), gauss))
    return made


def _random_state(made: random.Random) -> list[Any]:
    version, words, gauss = made.getstate()
    return [version, list(words), gauss]


GENERATORS = {
    "generator": Form(np.random.Generator, lambda one: dict(one.bit_generator.state), _generator),
    "random": Form(random.Random, _random_state, _random),
}


@dataclass(slots=True)
class Place:
    """A value's place: how it is read, and how another is put there."""

    read: Callable[[], Any]
    put: Callable[[Any], None]


class Reach:
    """The places that rounds of one strategy may change."""

    def __init__(self, strategy: Strategy, evaluate: Any, forms: Forms) -> None:
        """Look at everything as it is before the first round."""
        self._strategy = strategy
        self._forms = forms
        self._places = dict(_places(strategy, evaluate))
        self._begun = {name: self._digest(place.read()) for name, place in self._places.items()}

    def state(self) -> dict[str, Any]:
        """Return what is kept, or raise UnkeepableError naming what cannot be."""
        changed = {}
        for name, place in self._places.items():
            value, begun = place.read(), self._begun[name]
            if begun is None or self._digest(value) != begun:
                changed[name] = value
        return {"attributes": dict(_attributes(self._strategy)), "places": changed}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put everything back; lists and the like in place, for whoever else holds them."""
        for name, value in state["attributes"].items():
            owner, _, attribute = name.rpartition(".")
            strategy = functools.reduce(getattr, filter(None, owner.split(".")), self._strategy)
            if not _refilled(getattr(strategy, attribute, None), value):
                setattr(strategy, attribute, value)
        for name, value in state["places"].items():
            place = self._places[name]
            if not _refilled(place.read(), value):
                place.put(value)

    def _digest(self, value: Any) -> str | None:
        """Return what tells whether a value has changed; None when that cannot be told."""
        try:
            parts = codec.encode(keeping.pack(value, self._forms))
        except UnkeepableError:
            return None
        sha = hashlib.sha256()
        for part in parts:
            sha.update(part)
        return sha.hexdigest()


def _attributes(strategy: Strategy, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in vars(strategy).items():
        if isinstance(value, Strategy):
            yield from _attributes(value, f"{prefix}{name}.")
        elif not _still(value):
            yield prefix + name, value


def _still(value: Any) -> bool:
    kind = type(value)
    return isinstance(value, STILL) or (kind.__module__, kind.__name__) in {
        ("torch", "device"),
        ("torch", "dtype"),
    }


def _refilled(old: Any, new: Any) -> bool:
    """Fill a list or the like with other contents; return whether that could be done."""
    if type(old) is not type(new):
        return False
    if isinstance(old, list):
        old[:] = new
    elif isinstance(old, dict | set):
        old.clear()
        old.update(new)
    elif isinstance(old, deque) and old.maxlen == new.maxlen:
        old.clear()
        old.extend(new)
    elif isinstance(old, np.ndarray) and old.shape == new.shape and old.flags.writeable:
        old[...] = new
    else:
        return False
    return True


def _places(strategy: Strategy, evaluate: Any) -> Iterator[tuple[str, Place]]:
    seen: set[int] = set()
    for function in [evaluate, *_methods(strategy)]:
        yield from _of(function, seen, strategy)


def _methods(strategy: Strategy) -> Iterator[Any]:
    """Yield the functions of a strategy that are the app's own."""
    for kind in type(strategy).__mro__:
        if _own(kind.__module__):
            yield from (one for one in vars(kind).values() if isinstance(one, types.FunctionType))
    for value in vars(strategy).values():
        if isinstance(value, Strategy):
            yield from _methods(value)
        elif isinstance(value, CODE):
            yield value


def _of(function: Any, seen: set[int], strategy: Strategy) -> Iterator[tuple[str, Place]]:
    """Yield the places that a function of the app's names: in its closure and its globals."""
    while isinstance(function, functools.partial):
        function = function.func
    if isinstance(function, types.MethodType):
        if function.__self__ is not strategy and not isinstance(function.__self__, type):
            yield from _place(f"{function.__qualname__}.self", function.__self__, None)
        function = function.__func__
    if not isinstance(function, types.FunctionType) or not _own(function.__module__):
        return
    if id(function) in seen:
        return
    seen.add(id(function))
    name, code = f"{function.__module__}.{function.__qualname__}", function.__code__
    for free, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            value = cell.cell_contents
        except ValueError:
            continue
        yield from _found(f"{name}<{free}>", value, _in_cell(cell), seen, strategy)
    every = function.__globals__
    for called in code.co_names:
        if called in every:
            key = f"{function.__module__}.{called}"
            place = _in_globals(every, called)
            yield from _found(key, every[called], place, seen, strategy)


def _found(
    name: str, value: Any, place: Place, seen: set[int], strategy: Strategy
) -> Iterator[tuple[str, Place]]:
    if isinstance(value, CODE):
        yield from _of(value, seen, strategy)
    else:
        yield from _place(name, value, place)


def _place(name: str, value: Any, place: Place | None) -> Iterator[tuple[str, Place]]:
    """Yield a value's place if rounds may change it."""
    if value is None or isinstance(value, PLAIN):
        if place is not None:
            yield name, place
    elif _own(type(value).__module__) and not hasattr(value, "load_state_dict"):
        # An object of the app's own class: who knows what it remembers. A torch module is none:
        # it is loaded with the round's arrays whenever it is used.
        yield name, Place(lambda: value, lambda _: None)


def _in_cell(cell: types.CellType) -> Place:
    def put(value: Any) -> None:
        cell.cell_contents = value

    return Place(lambda: cell.cell_contents, put)


def _in_globals(every: dict[str, Any], name: str) -> Place:
    def put(value: Any) -> None:
        every[name] = value

    return Place(lambda: every.get(name), put)


@functools.cache
def _own(module: str) -> bool:
    """Return whether a module is the app's own, neither Python's nor installed nor ours."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None or module.partition(".")[0] in {"skerry_cloud", "skerry_protos"}:
        return False
    paths = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return not any(Path(file).is_relative_to(path) for path in paths if path)
