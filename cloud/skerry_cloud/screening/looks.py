"""How replies look (names, types, shapes), and in which words two looks differ."""

from collections.abc import Mapping

from skerry_protos.records import Records
from skerry_protos.tensors import DType, Tensor

WEIGHTS = ("num-examples", "num_examples")
"""Metrics that weigh a reply: Flower's name for it, and its older one."""

Shape = tuple[str, str, tuple[int, ...] | None]
Group = frozenset[Shape]
Arrays = frozenset[tuple[str, Group]]
Metrics = frozenset[tuple[str, frozenset[tuple[str, int]]]]


def arrays_look(records: Records) -> Arrays:
    """Return how all arrays look."""
    return frozenset((name, group_look(group)) for name, group in records.arrays.items())


def group_look(group: Mapping[str, Tensor]) -> Group:
    """Return how one group of arrays looks, whatever its name."""
    return frozenset(_shape(name, tensor) for name, tensor in group.items())


def _shape(name: str, tensor: Tensor) -> Shape:
    """Return how an array looks; bytes (a serialised model, say) may have any length."""
    if tensor.stype:
        return (name, tensor.stype, None)
    if tensor.dtype is DType.UINT8 and len(tensor.shape) == 1:
        return (name, "bytes", None)
    return (name, tensor.dtype.name, tensor.shape)


def arrays_difference(expected: Arrays, look: Arrays) -> str:
    """Return how a reply's arrays differ from those expected."""
    wanted, had = dict(expected), dict(look)
    if odd := sorted(set(wanted) ^ set(had)):
        return f"it {'lacks' if odd[0] in wanted else 'has'} the arrays {odd[0]!r}"
    for name in sorted(wanted):
        if why := _group_difference(wanted[name], had[name]):
            return why
    return "its arrays are unlike the others'"


def _group_difference(expected: Group, look: Group) -> str | None:
    wanted = {name: (kind, shape) for name, kind, shape in expected}
    had = {name: (kind, shape) for name, kind, shape in look}
    if odd := sorted(set(wanted) ^ set(had)):
        return f"it {'lacks' if odd[0] in wanted else 'has'} the array {odd[0]!r}"
    for name in sorted(wanted):
        if had[name] != wanted[name]:
            return f"its array {name!r} is {_words(*had[name])}; expected {_words(*wanted[name])}"
    return None


def _words(kind: str, shape: tuple[int, ...] | None) -> str:
    return kind.lower() if shape is None else f"{kind.lower()} {shape}"


def metrics_look(records: Records) -> Metrics:
    """Return the names of all metrics, and the lengths of those that are lists."""
    return frozenset(
        (
            group,
            frozenset(
                (name, len(value) if isinstance(value, list) else -1)
                for name, value in metrics.items()
            ),
        )
        for group, metrics in records.metrics.items()
    )


def weighed(look: Metrics) -> bool:
    """Return whether a reply says how much it counts."""
    return any(name in WEIGHTS for _, names in look for name, _ in names)


def metrics_difference(expected: Metrics, look: Metrics) -> str:
    """Return how a reply's metrics differ from those expected."""
    wanted, had = dict(expected), dict(look)
    if odd := sorted(set(wanted) ^ set(had)):
        return f"it {'lacks' if odd[0] in wanted else 'has'} the metrics {odd[0]!r}"
    for group, names in wanted.items():
        here, there = dict(names), dict(had[group])
        missing = sorted(set(here) - set(there), key=lambda name: (name not in WEIGHTS, name))
        if missing:
            return f"its metrics lack {missing[0]!r}"
        if more := sorted(set(there) - set(here)):
            return f"its metrics have {more[0]!r}, the others' do not"
        for name, length in here.items():
            if there[name] != length:
                return f"its metric {name!r} has another length than the others'"
    return "its metrics are unlike the others'"
