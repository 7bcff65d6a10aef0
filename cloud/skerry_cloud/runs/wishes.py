"""What a run's server side may say, checked field by field: its code is an app's.

Every function takes the message as it arrived and returns values, or raises PeerError.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from skerry_protos.errors import PeerError
from skerry_protos.messages import INLINE_LIMIT

QUESTION_LIMIT = 20_000
"""Most devices asked at once."""
METRICS_LIMIT = 100_000
LATEST_S = 30 * 86_400.0
# The last two are Flower's older ones.
MESSAGE_TYPE = re.compile(
    r"(train|evaluate|query|system)(\.[A-Za-z_][A-Za-z0-9_]{0,47})?|get_parameters|get_properties"
)
_FILE = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """One device's part of a question; `content` is an index into the question's contents."""

    node: int
    message_type: str
    group: str
    ttl_s: float
    content: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What is asked with: bytes, or the name of a file in the scratch folder.

    `beside` is what goes with a file of tensors alone, as the bytes of records without any.
    """

    data: bytes | str
    beside: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Tasks asked together."""

    number: int
    side: bool  # asked by a thread of the app's, not by its main one
    round: int
    phase: str
    timeout_s: float
    wants: tuple[Want, ...]
    contents: tuple[Content, ...]

    @classmethod
    def parse(cls, said: Mapping[str, Any], body: bytes) -> Self:
        """Return the question in a message, or raise PeerError."""
        contents = tuple(_content(one, body) for one in _list(said, "contents", QUESTION_LIMIT))
        wants = tuple(_want(one, len(contents)) for one in _list(said, "wants", QUESTION_LIMIT))
        if not wants:
            raise PeerError("the run's server side asked nobody")
        return cls(
            number=whole(said, "ask"),
            side=said.get("side") is True,
            round=whole(said, "round"),
            phase=text(said, "phase", 32),
            timeout_s=_seconds(said, "timeout_s"),
            wants=wants,
            contents=contents,
        )


def _want(one: Any, contents: int) -> Want:
    if not isinstance(one, dict):
        raise PeerError("the run's server side asked for something unreadable")
    message_type = text(one, "type", 64)
    if not MESSAGE_TYPE.fullmatch(message_type):
        raise PeerError(f"a message of type {message_type!r}; expected train, evaluate or query")
    content = whole(one, "content")
    if content >= contents:
        raise PeerError("the run's server side asked with content it did not bring")
    return Want(
        node=whole(one, "node", 2**64),
        message_type=message_type,
        group=text(one, "group", 128),
        ttl_s=_seconds(one, "ttl_s"),
        content=content,
    )


def _content(one: Any, body: bytes) -> Content:
    if not isinstance(one, dict):
        raise PeerError("the run's server side brought unreadable content")
    begin, end = whole(one, "begin"), whole(one, "end")
    if not begin <= end <= len(body) or end - begin > INLINE_LIMIT:
        raise PeerError("the run's server side brought content out of bounds")
    if "file" in one:
        return Content(data=file_name(one), beside=body[begin:end])
    return Content(data=body[begin:end])


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One number; node 0: of the whole round."""

    node: int
    round: int
    phase: str
    name: str
    value: float


def metrics(said: Mapping[str, Any]) -> list[Measured]:
    """Return the numbers in a message; those that are not finite come as null and are left out."""
    found = []
    for one in _list(said, "metrics", METRICS_LIMIT):
        if not isinstance(one, dict):
            raise PeerError("the run's server side measured something unreadable")
        value = one.get("value")
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300:
            found.append(
                Measured(
                    node=whole(one, "node", 2**64),
                    round=whole(one, "round"),
                    phase=text(one, "phase", 32),
                    name=text(one, "name", 200),
                    value=float(value),
                )
            )
    return found


def refusals(said: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return tasks whose replies were refused, and why."""
    return [
        (text(one, "task", 128), text(one, "why", 500))
        for one in _list(said, "tasks", QUESTION_LIMIT)
        if isinstance(one, dict)
    ]


def pulled(said: Mapping[str, Any]) -> list[str]:
    """Return the tasks whose answers the app took together."""
    return [str(one)[:128] for one in _list(said, "tasks", QUESTION_LIMIT)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How often a server side has asked devices, and asked which there are."""

    asked: int
    mustered: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A checkpoint: its file, the round it follows, and the counts that it begins and ends with."""

    file: str
    round: int
    first: Counts
    last: Counts

    @classmethod
    def parse(cls, said: Mapping[str, Any]) -> Self:
        """Return the checkpoint in a message, or raise PeerError."""
        return cls(
            file=file_name(said),
            round=whole(said, "round"),
            first=Counts(asked=whole(said, "first_asked"), mustered=whole(said, "first_mustered")),
            last=Counts(asked=whole(said, "asked"), mustered=whole(said, "mustered")),
        )


def file_name(said: Mapping[str, Any]) -> str:
    """Return the name of a file in the scratch folder: a plain name, never a path."""
    name = text(said, "file", 64)
    if not _FILE.fullmatch(name):
        raise PeerError(f"the run's server side named the file {name!r}")
    return name


def text(said: Mapping[str, Any], key: str, limit: int) -> str:
    """Return a text, cut to `limit`."""
    value = said.get(key, "")
    if not isinstance(value, str):
        raise PeerError(f"the run's server side sent {key!r} that is no text")
    return value[:limit]


def whole(said: Mapping[str, Any], key: str, limit: int = 2**31) -> int:
    """Return a whole number from 0 to below `limit`."""
    value = said.get(key, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < limit:
        raise PeerError(f"the run's server side sent {key!r} = {value!r:.40}")
    return value


def _seconds(said: Mapping[str, Any], key: str) -> float:
    value = said.get(key, 0)
    if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise PeerError(f"the run's server side sent {key!r} = {value!r:.40}")
    return min(float(value), LATEST_S)


def _list(said: Mapping[str, Any], key: str, limit: int) -> list[Any]:
    value = said.get(key)
    if not isinstance(value, list) or len(value) > limit:
        raise PeerError(f"the run's server side sent no proper {key!r}")
    return value
