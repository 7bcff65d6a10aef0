"""Which replies of a round are fit to be merged, each known as early as it is certain.

The rules look at all replies of a round: arrays like the model that was sent (or else like most),
an update's norm within `max_norm_ratio` of the median, metrics named like most. A verdict is given
before all replies are here only when no reply still to come could change it. So what is used never
depends on who came first: the same replies give the same verdicts, also when a run is resumed.
"""

import math
from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from skerry_protos.records import Records

from skerry_cloud.screening.looks import (
    Arrays,
    Metrics,
    arrays_difference,
    arrays_look,
    metrics_difference,
    metrics_look,
    weighed,
)
from skerry_cloud.screening.norms import measured

K = TypeVar("K", bound=Hashable)

FIT = ""
"""The verdict on a reply that can be used."""


@dataclass(slots=True)
class _Kind:
    """The replies that look alike: how many, which came first in order, and their norms."""

    first: int
    count: int = 0
    norms: list[float] = field(default_factory=list)  # sorted; opaque replies have none

    def add(self, place: int, norm: float | None) -> None:
        self.first = min(self.first, place)
        self.count += 1
        if norm is not None:
            insort(self.norms, norm)

    def within(self, limit: float) -> int:
        """Return how many have no norm or one of at most `limit`."""
        return self.count - len(self.norms) + bisect_right(self.norms, limit)


@dataclass(frozen=True, slots=True)
class _Heard:
    flaw: str | None
    arrays: Arrays
    metrics: Metrics
    norm: float | None


class RoundScreen(Generic[K]):
    """The verdicts on the replies to one question. `keys` are those asked, in order."""

    def __init__(
        self,
        keys: Sequence[K],
        asked: Records | None,
        *,
        arrays: bool = True,
        exact: bool = False,
        max_norm_ratio: float = 0.0,
    ) -> None:
        """Look at arrays or not; with `exact` they must look as those asked with.

        `max_norm_ratio` 0 lets norms be.
        """
        self._place = {key: place for place, key in enumerate(keys)}
        self._left = set(keys)
        self._asked = asked
        self._look_at_arrays = arrays
        self._ratio = max_norm_ratio
        self._exact = arrays_look(asked) if exact and arrays and asked is not None else None
        self._sent = {group for _, group in arrays_look(asked)} if asked is not None else set()
        self._heard: dict[K, _Heard] = {}
        self._arrays: dict[Arrays, _Kind] = {}
        self._kinds: dict[Arrays, dict[Metrics, _Kind]] = defaultdict(dict)
        self._given: dict[K, str] = {}

    def hear(self, key: K, reply: Records, asked: Records | None = None) -> None:
        """Look at a reply, once; nothing of it is kept but how it looks.

        `asked` is what this one was asked with, where that is not the same for all.
        """
        flaw, norm = measured(reply, asked or self._asked, arrays=self._look_at_arrays)
        arrays = arrays_look(reply) if self._look_at_arrays else frozenset()
        heard = _Heard(flaw=flaw, arrays=arrays, metrics=metrics_look(reply), norm=norm)
        self._heard[key] = heard
        self._left.discard(key)
        if flaw is None:
            place = self._place[key]
            self._arrays.setdefault(arrays, _Kind(place)).add(place, norm)
            self._kinds[arrays].setdefault(heard.metrics, _Kind(place)).add(place, norm)

    def miss(self, key: K) -> None:
        """Note that no reply will come."""
        self._left.discard(key)

    def close(self) -> None:
        """Note that no more replies will come."""
        self._left.clear()

    def verdict(self, key: K) -> str | None:
        """Return FIT, or why the reply cannot be used; None while that is not certain."""
        if key not in self._given:
            heard = self._heard.get(key)
            found = None if heard is None else self._judge(heard)
            if found is None:
                return None
            self._given[key] = found
        return self._given[key]

    def _judge(self, heard: _Heard) -> str | None:
        if heard.flaw is not None:
            return heard.flaw
        known, expected = self._expected_arrays()
        if not known:
            return None
        if expected is not None and heard.arrays != expected:
            return arrays_difference(expected, heard.arrays)
        least, most = self._limits(expected)
        if heard.norm is not None and heard.norm > least:
            if heard.norm > most:
                return (
                    f"its update's norm of {heard.norm:.4g} is more than {self._ratio:g} times "
                    "the round's median (max_norm_ratio)"
                )
            return None
        metrics = self._expected_metrics(expected, least)
        if metrics is None:
            return None
        return FIT if heard.metrics == metrics else metrics_difference(metrics, heard.metrics)

    def _expected_arrays(self) -> tuple[bool, Arrays | None]:
        """Return whether it is certain how arrays must look, and how; None: in any way."""
        if self._exact is not None or not self._look_at_arrays:
            return True, self._exact
        like = {
            look: kind
            for look, kind in self._arrays.items()
            if {group for _, group in look} == self._sent
        }
        found = _leader(like.items(), len(self._left))
        if found is not None:
            return True, found
        if self._left:
            return False, None
        every = sum(kind.count for kind in self._arrays.values())
        usual = _leader(self._arrays.items(), 0)
        if usual is not None and self._arrays[usual].count * 2 > every:
            return True, usual
        return True, None

    def _limits(self, expected: Arrays | None) -> tuple[float, float]:
        """Return the largest norm that surely passes, and the largest that may."""
        if not self._ratio or not self._look_at_arrays:
            return math.inf, math.inf
        if expected is None:
            norms = sorted(norm for kind in self._arrays.values() for norm in kind.norms)
        else:
            kind = self._arrays.get(expected)
            norms = kind.norms if kind is not None else []
        left = len(self._left)
        least, most = _median(norms, below=left), _median(norms, above=left)
        if least > 0:
            return least * self._ratio, most * self._ratio
        # A median of 0 says nothing of the scale (most devices changed nothing): all pass then.
        return (0.0 if left and most > 0 else math.inf), math.inf

    def _expected_metrics(self, arrays: Arrays | None, limit: float) -> Metrics | None:
        """Return how metrics must look, or None while that is not certain."""
        kinds: dict[Metrics, list[_Kind]] = defaultdict(list)
        for look, by_metrics in self._kinds.items():
            if arrays is None or look == arrays:
                for metrics, kind in by_metrics.items():
                    kinds[metrics].append(kind)
        sure = {look: sum(one.within(limit) for one in found) for look, found in kinds.items()}
        first = {look: min(one.first for one in found) for look, found in kinds.items()}
        weighing = {look for look in kinds if weighed(look) and sure[look]}
        order = sorted(weighing or sure, key=lambda look: (-sure[look], first[look]))
        if not order:
            return None
        if not self._left:
            return order[0]
        others = max(
            (sum(one.count for one in kinds[look]) for look in kinds if look != order[0]), default=0
        )
        certain = order[0] in weighing and sure[order[0]] > others + len(self._left)
        return order[0] if certain else None


def _leader(kinds: Iterable[tuple[Arrays, _Kind]], left: int) -> Arrays | None:
    """Return the most frequent look, the first in order among equals; None while not certain."""
    order = sorted(kinds, key=lambda one: (-one[1].count, one[1].first))
    if not order:
        return None
    second = order[1][1].count if len(order) > 1 else 0
    return order[0][0] if not left or order[0][1].count > second + left else None


def _median(norms: list[float], *, below: int = 0, above: int = 0) -> float:
    """Return the median of sorted norms among so many more at 0, or without a bound."""
    size = len(norms) + below + above

    def at(place: int) -> float:
        if place < below:
            return 0.0
        place -= below
        return norms[place] if place < len(norms) else math.inf

    if not size:
        return 0.0
    return (at((size - 1) // 2) + at(size // 2)) / 2


def flaws(
    asked: Records | None,
    replies: Mapping[K, Records],
    *,
    arrays: bool = True,
    max_norm_ratio: float = 0.0,
) -> dict[K, str]:
    """Return why replies to `asked` cannot be used; those not named can.

    With `arrays` (a reply to "train") the tensors are looked at too.
    """
    screen = RoundScreen(list(replies), asked, arrays=arrays, max_norm_ratio=max_norm_ratio)
    for key, reply in replies.items():
        screen.hear(key, reply)
    screen.close()
    return {key: why for key in replies if (why := screen.verdict(key))}
