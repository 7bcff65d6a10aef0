"""The coordinator's end of a run's channel, in a thread: devices are functions, replies are files.

The child's side is the real one: `Asker`, `SkerryGrid`, the strategies. What devices answer, in
which order and when, is the test's to say.
"""

import contextlib
import itertools
import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skerry_cloud.runs.asker import Asker
from skerry_cloud.runs.channel import HEAD, ChildEnd, pack
from skerry_protos import records as codec
from skerry_protos.messages import INLINE_LIMIT
from skerry_protos.records import Records

Device = Callable[[int, Records], Records | str]
"""From a node and what it is asked to its reply, or why it failed."""


@dataclass
class Shore:
    """Answers questions in the order that `order` puts the asked in, each once `may` allows it."""

    folder: Path
    nodes: Sequence[int]
    device: Device
    order: Callable[[list[int]], list[int]] = lambda places: places
    may: Callable[[int], None] = lambda place: None
    said: list[dict[str, Any]] = field(default_factory=list)

    def refused(self) -> dict[str, str]:
        """Return the tasks whose replies were refused, and why."""
        found = [one for said in self.said if said["do"] == "refused" for one in said["tasks"]]
        return {one["task"]: one["why"] for one in found}

    def serve(self, connection: socket.socket) -> None:
        """Answer until the other end has gone."""
        self._numbers = itertools.count()
        self._connection = connection
        with contextlib.suppress(EOFError, OSError):
            while True:
                said, body = self._receive()
                self.said.append(said)
                if said["do"] == "nodes":
                    nodes = [{"node": one, "device": f"d{one}"} for one in self.nodes]
                    self._send({"do": "nodes", "nodes": nodes, "decodes": [], "beside": []})
                elif said["do"] == "ask":
                    self._ask(said, body)

    def _ask(self, said: dict[str, Any], body: bytes) -> None:
        tasks = [f"task-{said['ask']}-{place}" for place in range(len(said["wants"]))]
        self._send({"do": "asked", "ask": said["ask"], "tasks": tasks})
        contents = [
            codec.read(self.folder / one["file"])
            if "file" in one
            else codec.decode(body[one["begin"] : one["end"]])
            for one in said["contents"]
        ]
        for place in self.order(list(range(len(tasks)))):
            self.may(place)
            want = said["wants"][place]
            answer = self.device(want["node"], contents[want["content"]])
            if isinstance(answer, str):
                failure = {"do": "failure", "ask": said["ask"], "task": tasks[place], "code": 2}
                self._send({**failure, "why": answer})
                continue
            reply = {"do": "reply", "ask": said["ask"], "task": tasks[place]}
            parts = codec.encode(answer)
            if codec.size_of(parts) > INLINE_LIMIT:
                path = self.folder / f"reply{next(self._numbers)}"
                codec.write(answer, path)
                self._send({**reply, "file": str(path)})
            else:
                self._send(reply, b"".join(parts))

    def _send(self, said: dict[str, Any], body: bytes = b"") -> None:
        self._connection.sendall(pack(said, body))

    def _receive(self) -> tuple[dict[str, Any], bytes]:
        text, body = HEAD.unpack(self._exactly(HEAD.size))
        return json.loads(self._exactly(text)), self._exactly(body)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            if not (got := self._connection.recv(size - len(data))):
                raise EOFError
            data += got
        return data


@contextlib.contextmanager
def asking(shore: Shore, *, max_norm_ratio: float = 0.0) -> Iterator[Asker]:
    """Serve while the block runs; yield the child's end."""
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=shore.serve, args=(ours,), daemon=True)
    thread.start()
    asker = Asker(
        ChildEnd(theirs), shore.folder, round_deadline_s=30, max_norm_ratio=max_norm_ratio
    )
    try:
        yield asker
    finally:
        theirs.shutdown(socket.SHUT_RDWR)
        thread.join(10)
        ours.close()
        theirs.close()
