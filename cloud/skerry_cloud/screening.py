"""Which replies are fit to be merged: pure, and said in one line for each that is not.

Every stock strategy assumes that all replies of a round look alike, and one that does not would
end the run (FLOWER.md 2.5). So what is not finite, or looks unlike the model that was sent or
unlike the others, is left out here, by name.
"""

from collections import Counter
from collections.abc import Hashable, Mapping
from typing import TypeVar

from skerry_protos.errors import PeerError
from skerry_protos.records import Records
from skerry_protos.tensors import DType, Tensor

WEIGHTS = ("num-examples", "num_examples")
"""Metrics that weigh a reply: Flower's name for it, and its older one."""

K = TypeVar("K", bound=Hashable)

Shape = tuple[str, str, object]
Arrays = frozenset[tuple[str, frozenset[Shape]]]
Metrics = frozenset[tuple[str, frozenset[tuple[str, int]]]]


def flaws(
    asked: Records | None, replies: Mapping[K, Records], *, arrays: bool = True
) -> dict[K, str]:
    """Return why replies to `asked` cannot be used; those not named can.

    With `arrays` (a reply to "train") the tensors are looked at too.
    """
    found = {key: why for key, reply in replies.items() if (why := own_flaw(reply, arrays=arrays))}
    rest = {key: reply for key, reply in replies.items() if key not in found}
    if arrays:
        found |= _unlike_arrays(asked, rest)
        rest = {key: reply for key, reply in rest.items() if key not in found}
    return found | _unlike_metrics(rest)


def own_flaw(reply: Records, *, arrays: bool = True) -> str | None:
    """Return what is wrong with a reply by itself, or None."""
    for metrics in reply.metrics.values():
        for name in WEIGHTS:
            weight = metrics.get(name)
            if isinstance(weight, int | float) and not 0 < weight < float("inf"):
                return f"its metric {name!r} is {weight}; expected more than 0"
    if arrays:
        for group in reply.arrays.values():
            for name, tensor in group.items():
                try:
                    if not tensor.finite():
                        return f"its array {name!r} has NaN or infinity"
                except PeerError as error:
                    return f"its array {name!r}: {error.message}"
    return None


def unlike(asked: Mapping[str, Tensor], reply: Mapping[str, Tensor]) -> str | None:
    """Return how a reply's arrays differ from those asked with, or None."""
    if odd := sorted(set(asked) ^ set(reply)):
        return f"it {'lacks' if odd[0] in asked else 'has'} the array {odd[0]!r}"
    for name, tensor in asked.items():
        if _shape(name, tensor) != _shape(name, reply[name]):
            return f"its array {name!r} is {_words(reply[name])}; expected {_words(tensor)}"
    return None


def _unlike_arrays(asked: Records | None, replies: Mapping[K, Records]) -> dict[K, str]:
    """Return which replies' arrays are not like the task's, or else not like most replies'."""
    looks = {key: _arrays(reply) for key, reply in replies.items()}
    sent = {group for _, group in _arrays(asked)} if asked else set()
    like_sent = [look for look in looks.values() if {group for _, group in look} == sent]
    expected = _most(like_sent) if like_sent else _most(list(looks.values()), majority=True)
    if expected is None:
        return {}
    example = next(replies[key] for key, look in looks.items() if look == expected)
    return {
        key: _array_difference(example, replies[key])
        for key, look in looks.items()
        if look != expected
    }


def _array_difference(expected: Records, reply: Records) -> str:
    if odd := sorted(set(expected.arrays) ^ set(reply.arrays)):
        return f"it {'lacks' if odd[0] in expected.arrays else 'has'} the arrays {odd[0]!r}"
    for name, group in expected.arrays.items():
        if why := unlike(group, reply.arrays[name]):
            return why
    return "its arrays are unlike the others'"


def _unlike_metrics(replies: Mapping[K, Records]) -> dict[K, str]:
    """Return which replies' metrics have other names or lengths than most."""
    looks = {key: _metrics(reply) for key, reply in replies.items()}
    weighed = [look for look in looks.values() if _weighed(look)]
    expected = _most(weighed or list(looks.values()))
    if expected is None:
        return {}
    return {
        key: _metric_difference(expected, look) for key, look in looks.items() if look != expected
    }


def _metric_difference(expected: Metrics, look: Metrics) -> str:
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


def _most(looks: list[K], *, majority: bool = False) -> K | None:
    """Return the most frequent look, the earliest among equals; with `majority`, of over half."""
    if not looks:
        return None
    look, count = Counter(looks).most_common(1)[0]
    return look if not majority or count * 2 > len(looks) else None


def _arrays(records: Records) -> Arrays:
    return frozenset(
        (name, frozenset(_shape(key, tensor) for key, tensor in group.items()))
        for name, group in records.arrays.items()
    )


def _shape(name: str, tensor: Tensor) -> Shape:
    """Return how an array looks; bytes (a serialised model, say) may have any length."""
    if tensor.stype:
        return (name, tensor.stype, None)
    if tensor.dtype is DType.UINT8 and len(tensor.shape) == 1:
        return (name, "bytes", None)
    return (name, tensor.dtype.name, tensor.shape)


def _words(tensor: Tensor) -> str:
    return f"{tensor.dtype.name.lower()} {tensor.shape}"


def _metrics(records: Records) -> Metrics:
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


def _weighed(look: Metrics) -> bool:
    return any(name in WEIGHTS for _, names in look for name, _ in names)
