"""The replies to a question as Flower's messages: a list that is filled as it is read.

A reply waits as a file until somebody reads it. Read in the usual way, it stays as the same
message, over a mapped file: a strategy may go over the list as often as it likes. Read by
`each_once`, nothing of it is kept.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

from flwr.app import Message

from skerry_cloud.runs.asker import Answer, Asker


class Replies(Sequence[Message]):
    """One message for each that was sent, in the order in which they were sent."""

    def __init__(
        self,
        asker: Asker,
        count: int,
        answers: Iterator[Answer],
        make: Callable[[Answer], Message],
    ) -> None:
        self._asker = asker
        self._count = count
        self._answers = answers
        self._make = make
        self._taken: list[Message | Answer] = []

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, place: int) -> Message: ...

    @overload
    def __getitem__(self, place: slice) -> list[Message]: ...

    def __getitem__(self, place: int | slice) -> Any:
        if isinstance(place, slice):
            return [self._at(one) for one in range(*place.indices(self._count))]
        if not -self._count <= place < self._count:
            raise IndexError(f"there are {self._count} replies")
        return self._at(place % self._count)

    def __iter__(self) -> Iterator[Message]:
        for place in range(self._count):
            yield self._at(place)

    def __add__(self, other: Sequence[Message]) -> list[Message]:
        return [*self, *other]

    def __radd__(self, other: Sequence[Message]) -> list[Message]:
        return [*other, *self]

    def each_once(self) -> Iterator[Message]:
        """Yield each message; what was not read before is forgotten behind."""
        for place in range(self._count):
            if place < len(self._taken):
                yield self._at(place)
            else:
                answer = self._next()
                message = self._make(answer)
                answer.content = None
                yield message

    def settle(self) -> None:
        """Wait until every reply is here or has failed."""
        while len(self._taken) < self._count:
            self._next().content = None

    @property
    def settled(self) -> bool:
        """Return whether nothing is waited for."""
        return len(self._taken) == self._count

    def _at(self, place: int) -> Message:
        while len(self._taken) <= place:
            self._next()
        found = self._taken[place]
        if isinstance(found, Answer):
            if found.source is not None:
                content = found.content if found.content is not None else self._asker.load(found)
                found.content = self._asker.on_disk(content)
            found = self._taken[place] = self._make(found)
        return found

    def _next(self) -> Answer:
        answer = next(self._answers)
        self._taken.append(answer)
        if self.settled:
            next(self._answers, None)  # it reports behind the last
        return answer
