"""What the agent and a worker say to each other: length-prefixed JSON over a socket pair.

Tensors never pass here: content and replies are files, named by path. The agent trusts nothing a
worker says: sizes are bounded and every field is checked.
"""

import json
import struct
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from skerry_protos.errors import PeerError

HEAD = struct.Struct("<I")
MESSAGE_LIMIT = 1 << 20
"""Longest message either way, bytes."""
REASON_LIMIT = 1000
"""Longest reason of a failure, characters."""
LIBRARIES = {
    "native": "skerry_edge.apps.native",
    "flower": "skerry_edge.apps.flower",
    "torch": "torch",
}
"""What a zygote may load before it forks, by name: kinds of apps, and what starts no threads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """How a worker limits itself before it loads anything of others; the first message."""

    agent_pid: int
    niceness: int = 10
    io_idle: bool = True
    file_bytes: int = 0
    data_bytes: int = 0
    uid: int = -1
    gid: int = -1
    processes: int = 0
    hidden: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One task, as the worker needs it: everything is a value or a path."""

    id: str
    kind: str  # "native" or "flower"
    app: str  # the unpacked bundle
    entry: str  # "module:attribute"
    message_type: str
    content: str  # the records file asked with
    reply: str  # where to write the records file answered with
    beside: str = ""  # the records file of what goes with a content of tensors alone
    state: str = ""  # the app's state of this run, when there is one
    state_out: str = ""  # where to write its next state
    codec: dict[str, Any] = field(default_factory=dict)  # how to code an update; empty: not at all
    feedback: str = ""  # what the codec keeps of this run, when there is something
    feedback_out: str = ""  # where to write what it keeps next
    run: str = ""
    round: int = 0
    device: str = ""
    flower_run: int = 0
    node: int = 0
    group: str = ""
    message_id: str = ""
    created_unix_s: float = 0.0
    ttl_s: float = 0.0
    run_config: dict[str, Any] = field(default_factory=dict)
    node_config: dict[str, Any] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a job; `code` and `reason` are set when it failed."""

    id: str
    failed: bool = False
    code: int = 0
    reason: str = ""
    state: bool = False  # whether state_out was written
    feedback: bool = False  # whether feedback_out was written
    codec: str = ""  # what the reply is coded with
    plain_bytes: int = 0  # what it would have had without
    compute_s: float = 0.0
    cpu_s: float = 0.0
    peak_rss_bytes: int = 0
    libraries: str = ""  # names of LIBRARIES that the worker has loaded, by commas

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Return a worker's message, or raise PeerError: its code may be anybody's."""
        try:
            said = json.loads(data)
        except (UnicodeDecodeError, ValueError, RecursionError) as error:
            raise PeerError(f"a worker said something that is not JSON: {error}") from error
        if not isinstance(said, dict):
            raise PeerError("a worker said something that is not an outcome")
        for each in fields(cls):
            kinds = (int, float) if each.type is float else each.type
            if not isinstance(said.get(each.name), kinds):  # type: ignore[arg-type]
                raise PeerError(f"a worker's outcome has no valid {each.name!r}")
        outcome = cls(**{each.name: said[each.name] for each in fields(cls)})
        longest = max(len(outcome.reason), len(outcome.libraries))
        if not 0 <= outcome.code <= 255 or longest > REASON_LIMIT:
            raise PeerError("a worker's outcome is out of bounds")
        return outcome


def pack(message: Sandbox | Job | Outcome) -> bytes:
    """Return a message with its length before it."""
    data = json.dumps(asdict(message)).encode()
    if len(data) > MESSAGE_LIMIT:
        raise PeerError(f"a message of {len(data)} bytes; expected at most {MESSAGE_LIMIT}")
    return HEAD.pack(len(data)) + data
