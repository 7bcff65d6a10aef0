"""A device that does not do what it should: enrolled and connected as any, it answers as told.

It speaks the real session over the real link, and goes below it for what a session never sends.
"""

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from skerry_edge.identity import Identity
from skerry_edge.links import LinkConfig, open_link
from skerry_edge.links.crossing import Crossing
from skerry_protos.blobs import LocalBlobs
from skerry_protos.codecs import installed as codecs
from skerry_protos.errors import RefusedError, RejectedError
from skerry_protos.messages import BlobRef, Parcel, ParcelId, ParcelKind, new_id
from skerry_protos.seams import Stream
from skerry_protos.v1 import fleet_pb2 as pb
from skerry_protos.v1 import work_pb2

from tests.faults.machine import Background

if TYPE_CHECKING:
    from tests.faults.world import World

ANSWER_S = 30.0


def config_of(identity: Identity, kind: str, home: Path, receiver: Any, **other: Any) -> LinkConfig:
    """Return what opens an identity's link of a kind."""
    address = next(one for one in identity.links if one.kind == kind)
    made = LinkConfig(
        kind=kind,
        url=address.url,
        device=identity.device,
        agent_version="0.1.0",
        credentials=identity.credentials,
        blobs=LocalBlobs(home / "blobs", durable=False),
        receiver=receiver,
    )
    return replace(made, **other)


class Mallory:
    """One such device; a context manager. Plain calls: its link lives in a thread of its own."""

    def __init__(self, world: "World", name: str = "mallory", *, connect: bool = True) -> None:
        self.name = name
        self._connect = connect
        self.home = world.home / "agents" / name
        self.tasks: list[Parcel] = []
        self.refusals: list[RefusedError] = []
        self.states: list[str | None] = []
        self._world = world
        self._background = Background(name)
        self._link: Crossing | None = None

    async def accept(self, parcel: Parcel) -> None:
        """Take a task, and do nothing."""
        if parcel.kind == ParcelKind.TASK:
            self.tasks.append(parcel)

    async def serve(self, stream: Stream) -> None:
        await stream.abort("unexpected", "no")

    def __enter__(self) -> Self:
        if not (self.home / "identity" / "identity.json").exists():
            self._world.launch(len(self._world.boats), name=self.name)
        self._background.start()
        if self._connect:
            self.connect()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.leave()
        self._background.stop()

    @property
    def link(self) -> Crossing:
        assert self._link is not None
        return self._link

    def connect(self, *, wait: bool = True, **other: Any) -> None:
        """Open a link: a session of its own, in which nothing was said before."""
        identity = Identity.load(self.home)
        config = config_of(
            identity,
            self._world.link,
            self.home,
            self,
            on_refused=self.refusals.append,
            on_state=lambda why, _wait: self.states.append(why),
            **other,
        )
        link = open_link(config)
        assert isinstance(link, Crossing)
        self._link = link
        self._background.do(link.__aenter__())
        if wait:
            self.wait(lambda: bool(self.states), "an answer to its Hello")
        if wait and self.link.connected:
            self.beat()

    def beat(self) -> None:
        """Send a heartbeat; when it is taken, all that was sent before it was heard."""
        beat = work_pb2.Heartbeat(unix_time_s=time.time(), state="idle", codecs=codecs())
        said = beat.SerializeToString()
        self.deliver(Parcel(id=ParcelId(new_id("beat-")), kind=ParcelKind.HEARTBEAT, body=said))

    def leave(self) -> None:
        """Close the link."""
        if self._link is not None:
            self._background.do(self._link.__aexit__(None, None, None))
            self._link = None
        self.states.clear()

    def wait(self, claim: Any, what: str, timeout_s: float = ANSWER_S) -> None:
        """Wait until a claim holds."""
        ends = time.monotonic() + timeout_s
        while not claim():
            assert time.monotonic() < ends, f"{self.name}: not within {timeout_s:g} s: {what}"
            time.sleep(0.005)

    def task(self, round_: int) -> Parcel:
        """Return the task of a round, when it is here."""
        self.wait(lambda: any(one.round == round_ for one in self.tasks), f"a task of {round_}")
        return next(one for one in self.tasks if one.round == round_)

    def answer(self, task: Parcel, body: bytes = b"", **other: Any) -> Parcel:
        """Return a reply to a task; by default one that says it failed."""
        if not body:
            failure = work_pb2.Failure(code=2, reason="no")
            body = work_pb2.Reply(task=task.id, failure=failure).SerializeToString()
        made = Parcel(
            id=ParcelId(f"{task.id}/reply"),
            kind=ParcelKind.REPLY,
            run=task.run,
            round=task.round,
            body=body,
        )
        return replace(made, **other)

    def with_content(self, task: Parcel, content: bytes) -> Parcel:
        """Return a reply whose content is these bytes, as a blob."""
        body = work_pb2.Reply(task=task.id).SerializeToString()
        return self.answer(task, body, blobs=(self.put(content),))

    def put(self, content: bytes, role: str = "content") -> BlobRef:
        """Return a blob that the cloud can ask for."""
        blobs = self.link._config.blobs
        assert isinstance(blobs, LocalBlobs)
        return blobs.put(content, role=role)

    def deliver(self, parcel: Parcel) -> str:
        """Send a parcel; return why it was rejected, or nothing."""
        try:
            self._background.do(self.link.deliver(parcel), ANSWER_S)
        except RejectedError as error:
            return error.code
        return ""

    def say(self, **kind: Any) -> None:
        """Send a frame that the session itself would not."""
        lanes = self.link.session._lanes

        async def say() -> None:  # by the session's own sender: a call of gRPC has one writer
            lanes.control(object(), pb.Frame(**kind))

        self._background.do(say())

    def send(self, packet: bytes) -> None:
        """Send a packet as it is, while the session's own sender has nothing to send."""
        lanes = self.link.session._lanes

        async def send() -> None:
            while lanes._sleeping is None or lanes._sleeping.done():  # noqa: ASYNC110
                await asyncio.sleep(0)
            assert lanes.wire is not None
            await lanes.wire.send(packet)

        self._background.do(send())
