"""What an earlier server side of a run asked and heard, until the new one has asked it again.

A server side that begins again says the same things in the same order, if its app is deterministic:
each question it repeats is answered from the journal and reaches no device. `Recall.claim` decides
which recorded question it repeats, or that it repeats none. Values only.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from skerry_protos.messages import DeviceId

from skerry_cloud.runs.wishes import Question
from skerry_cloud.runs.world import BrokenRunError
from skerry_cloud.store.questions import Question as Recorded

JOURNAL = 1
"""The form in which runs are recorded; a coordinator leaves runs of a newer form alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Print:
    """What tells questions apart: all that was asked, and of whom and how alone."""

    digest: str
    shape: str


def fingerprint(question: Question, contents: Sequence[str]) -> Print:
    """Return a question's print; `contents` are the SHA-256 of what it asks with."""
    wants = [[want.node, want.message_type, want.group] for want in question.wants]
    shape = hashlib.sha256(json.dumps([question.phase, wants]).encode()).hexdigest()
    whole = [shape, *(contents[want.content] for want in question.wants)]
    return Print(digest=hashlib.sha256(" ".join(whole).encode()).hexdigest(), shape=shape)


@dataclass(slots=True)
class Claim:
    """A recorded question that a new server side repeats, and whether word for word."""

    question: Recorded
    same: bool


@dataclass(slots=True)
class Recall:
    """The recorded questions that have not been repeated yet, and the answers about devices."""

    questions: list[Recorded] = field(default_factory=list)
    musters: dict[int, list[tuple[int, DeviceId]]] = field(default_factory=dict)
    again: bool = False  # what the server side reports now may be known

    def claim(self, asked: Question, fingerprint: Print) -> Claim | None:
        """Return the question that is repeated, or None for a new one; BrokenRunError for neither.

        The app's main thread asks in one order. Threads of its own (Flower's older API asks each
        device from one) come in any: theirs are found by what they ask.
        """
        if asked.side:
            found = _found((one for one in self.questions if one.side), fingerprint)
        else:
            found = next((one for one in self.questions if not one.side), None)
            if found is not None and found.shape != fingerprint.shape:
                raise BrokenRunError(
                    f"the app does not repeat itself: in round {found.round}, {found.phase}, it "
                    "asked other devices, or otherwise, than before the coordinator stopped "
                    "(docs/runs.md: what is resumed)"
                )
        if found is None:
            self.again = False
            return None
        self.questions.remove(found)
        return Claim(question=found, same=found.digest == fingerprint.digest)


def _found(questions: Iterable[Recorded], fingerprint: Print) -> Recorded | None:
    """Return the first question with this digest, else with this shape."""
    alike = None
    for one in questions:
        if one.digest == fingerprint.digest:
            return one
        if alike is None and one.shape == fingerprint.shape:
            alike = one
    return alike
