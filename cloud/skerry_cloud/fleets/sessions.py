"""The sessions of one transport's devices: all of a Fleet but its wires.

A transport makes a wire, reads the first packet, and calls `greet`; then it hands every packet to
`Visit.receive`, and `leave` when the wire has ended. The rest of Fleet is here.
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable, Iterable, Set
from pathlib import Path

from skerry_protos.allocator import keep_freed_memory
from skerry_protos.errors import LinkError, PeerError, RefusalCode, RefusedError
from skerry_protos.messages import BlobRef, DeviceId, Digest, Parcel
from skerry_protos.seams import Blobs, Stream, Wire
from skerry_protos.session import Inflow, Limits, Session, Side, pack, unpack, unpack_all
from skerry_protos.session.handshake import Greeting, read_hello, refusal, welcome
from skerry_protos.v1 import fleet_pb2 as pb

from skerry_cloud.fleets import Gate

log = logging.getLogger(__name__)

KEPT_MEMORY = 32 * 1024**2
"""Freed memory that a coordinator keeps for the next messages."""
SAYING_NO_S = 2.0
"""How long a refusal may take to leave before the wire is closed anyway."""


class _Doorkeeper:
    """A device's Receiver: hands what arrives to the registry with the device's name."""

    def __init__(self, gate: Gate, device: DeviceId) -> None:
        self._gate = gate
        self._device = device

    async def accept(self, parcel: Parcel) -> None:
        await self._gate.accept(self._device, parcel)

    async def serve(self, stream: Stream) -> None:
        await self._gate.serve(self._device, stream)


class Visit:
    """One wire of one device, from its Welcome until it is cut."""

    def __init__(
        self,
        *,
        device: DeviceId,
        session: Session,
        wire: Wire,
        close: Callable[[], None],
        nonce: int,
        welcome: pb.Frame,
        hears_kept: bool = False,
        on_broke: Callable[[PeerError], None] = lambda _error: None,
    ) -> None:
        self.device = device
        self.session = session
        self.wire = wire
        self.nonce = nonce
        self.hears_kept = hears_kept
        self.why = ""
        self.over = False
        self._close = close
        self._welcome = welcome
        self._on_broke = on_broke

    def receive(self, packet: bytes) -> None:
        """Take a packet of this device; cut the wire when it is malformed."""
        if self.over:
            return
        try:
            for frame, data in unpack_all(packet):
                self.take(frame, data)
        except PeerError as error:
            self.broke(error)

    def take(self, frame: pb.Frame, data: memoryview) -> None:
        """Take an unpacked packet of this device; cut the wire when it is malformed."""
        if self.over:
            return
        if frame.HasField("hello") and frame.hello.nonce == self.nonce:
            self.welcome_again()
            return
        try:
            self.session.receive(frame, data)
        except PeerError as error:
            self.broke(error)

    def welcome_again(self) -> None:
        """Repeat the Welcome: the device repeats its Hello, so the first was lost."""
        self.session.repeat(self._welcome)

    def broke(self, error: PeerError) -> None:
        """Dismiss a device that broke the protocol."""
        log.warning("device %s broke the protocol: %s", self.device, error)
        self._on_broke(error)
        self.dismiss(RefusedError(RefusalCode.MALFORMED, str(error), retry_after_s=5.0))

    def cut(self, why: str) -> None:
        """Close the wire; its reader then ends and calls `Sessions.leave`."""
        if not self.over:
            self.over = True
            self.why = self.why or why
            self.session.detach(why)
            self._close()

    def dismiss(self, refused: RefusedError) -> None:
        """Tell the device why, then close the wire, at the latest after SAYING_NO_S."""
        if self.over:
            return
        self.over = True
        self.why = self.why or refused.message
        self.session.detach(refused.message)
        _ = asyncio.ensure_future(self._say_no(refused))

    async def _say_no(self, refused: RefusedError) -> None:
        with contextlib.suppress(LinkError, TimeoutError):
            async with asyncio.timeout(SAYING_NO_S):
                await self.wire.send(refusal(refused, session=self.session.number))
        self._close()


class Sessions:
    """Who is connected by one transport, and everything of Fleet that needs no wire of its own."""

    def __init__(
        self,
        *,
        gate: Gate,
        blobs: Blobs,
        transport: str,
        inflow: Inflow | None = None,
        limits: Limits | None = None,
        heartbeat_s: float = 15.0,
        resume_s: float = 120.0,
        ping_s: float = 10.0,
        most: int = 10_000,
        on_blob_request: Callable[[DeviceId, pb.BlobRequest], list[int]] | None = None,
    ) -> None:
        """Begin with nobody.

        A session whose wire was cut can be resumed for `resume_s`; `most` sessions are admitted.
        """
        keep_freed_memory(KEPT_MEMORY)
        self._gate = gate
        self._blobs = blobs
        self._transport = transport
        self._inflow = inflow or Inflow()
        self._limits = limits or Limits()
        self._heartbeat_s = heartbeat_s
        self._resume_s = resume_s
        self._ping_s = ping_s
        self._most = most
        self._on_blob_request = on_blob_request
        self._sessions: dict[DeviceId, Session] = {}
        self._visits: dict[DeviceId, Visit] = {}
        self._turns: dict[DeviceId, asyncio.Lock] = {}
        self._expiries: dict[DeviceId, asyncio.TimerHandle] = {}
        self._closing: set[asyncio.Task[None]] = set()

    async def greet(
        self,
        packet: bytes,
        wire: Wire,
        *,
        identity: str | None,
        close: Callable[[], None],
        max_packet: int,
    ) -> Visit:
        """Answer a Hello; return the visit, or raise RefusedError after the Refusal was sent.

        `identity` is the name the transport has proved; `close` ends the wire, so that its reader
        ends too; `max_packet` is what this side can receive on it.
        """
        nonce = 0
        try:
            try:
                frame, _ = unpack(packet)
            except PeerError as error:
                raise RefusedError(RefusalCode.MALFORMED, str(error)) from error
            nonce = frame.hello.nonce if frame.WhichOneof("kind") == "hello" else 0
            greeting = read_hello(frame, identity)
            async with self._turn(greeting.device):
                known = self._visits.get(greeting.device)
                if known is not None and known.nonce == nonce:
                    known.welcome_again()
                    return known
                return await self._admit(greeting, wire, close, max_packet)
        except RefusedError as error:
            with contextlib.suppress(LinkError, TimeoutError):
                async with asyncio.timeout(SAYING_NO_S):
                    await wire.send(refusal(error, nonce=nonce))
            raise

    def _turn(self, device: DeviceId) -> asyncio.Lock:
        """Return the lock that orders what happens to a device: present never before absent."""
        return self._turns.setdefault(device, asyncio.Lock())

    async def _admit(
        self, greeting: Greeting, wire: Wire, close: Callable[[], None], max_packet: int
    ) -> Visit:
        device = greeting.device
        if device not in self._sessions and len(self._sessions) >= self._most:
            raise RefusedError(
                RefusalCode.BUSY,
                f"the coordinator holds {self._most} devices and takes no more",
                retry_after_s=30.0,
            )
        try:
            await self._gate.admit(device, self._transport, greeting.agent_version)
        except RefusedError:
            raise
        except Exception as error:
            log.exception("the registry could not say whether %s may connect", device)
            raise RefusedError(
                RefusalCode.BUSY, "the coordinator's registry does not answer", retry_after_s=5.0
            ) from error
        session, resumed = await self._session(device, greeting.resume)
        number = session.number if resumed else secrets.randbits(63) + 1
        answer = welcome(
            greeting,
            number,
            resumed=resumed,
            max_packet=max_packet,
            heartbeat_s=self._heartbeat_s,
        )
        await wire.send(pack(answer))
        visit = Visit(
            device=device,
            session=session,
            wire=wire,
            close=close,
            nonce=greeting.nonce,
            welcome=answer,
            hears_kept=greeting.hears_kept,
            on_broke=lambda error: self._gate.refused(device, "", error),
        )
        self._visits[device] = visit
        session.attach(wire, number, resumed=resumed, max_packet=greeting.max_packet)
        await self._gate.present(device, self._transport)
        return visit

    async def _session(self, device: DeviceId, resume: int) -> tuple[Session, bool]:
        """Return the session to go on with and whether it is the old one, which loses its wire."""
        old, visit = self._sessions.get(device), self._visits.pop(device, None)
        if expiry := self._expiries.pop(device, None):
            expiry.cancel()
        if old is not None and not old.number:
            return old, False  # its first Welcome never left: the device knows of no session
        if old is not None and resume == old.number:
            if visit is not None:
                visit.cut("the device came back on another connection")
                await self._gate.absent(device, self._transport, visit.why)
            return old, True
        if old is not None:
            if visit is not None:
                message = f"device {device} connected again elsewhere"
                visit.dismiss(RefusedError(RefusalCode.TAKEN_OVER, message))
                await self._gate.absent(device, self._transport, visit.why)
            await old.close(LinkError(f"device {device} began a new session"))
        session = self._sessions[device] = self._new_session(device)
        return session, False

    def _new_session(self, device: DeviceId) -> Session:
        hook = self._on_blob_request
        return Session(
            side=Side.CLOUD,
            blobs=self._blobs,
            receiver=_Doorkeeper(self._gate, device),
            limits=self._limits,
            inflow=self._inflow,
            ping_s=self._ping_s,
            on_broken=lambda why: self._broken(device, why),
            on_refused=lambda run, error: self._gate.refused(device, run, error),
            on_blob_request=None if hook is None else lambda request: hook(device, request),
        )

    def _broken(self, device: DeviceId, why: str) -> None:
        if visit := self._visits.get(device):
            visit.cut(why)

    async def leave(self, visit: Visit, why: str) -> None:
        """Note that the visit's wire has ended; its session can be resumed for a while."""
        visit.over = True
        async with self._turn(visit.device):
            if self._visits.get(visit.device) is not visit:
                return
            del self._visits[visit.device]
            visit.session.detach(why)
            self._expiries[visit.device] = asyncio.get_running_loop().call_later(
                self._resume_s, self._expire, visit.device, visit.session
            )
            await self._gate.absent(visit.device, self._transport, visit.why or why)

    def _expire(self, device: DeviceId, session: Session) -> None:
        if self._sessions.get(device) is session:
            self._forget(device)
            error = LinkError(f"device {device} did not come back within {self._resume_s:g} s")
            task = asyncio.ensure_future(session.close(error))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _forget(self, device: DeviceId) -> None:
        self._sessions.pop(device, None)
        self._visits.pop(device, None)
        if expiry := self._expiries.pop(device, None):
            expiry.cancel()

    async def close(self) -> None:
        """Cut every wire and end every session; devices see it and come back later."""
        for visit in list(self._visits.values()):
            visit.cut("the coordinator stops")
        sessions = list(self._sessions.items())
        for device, session in sessions:
            await session.close(LinkError("the coordinator stops"))
            self._forget(device)
        if self._closing:
            await asyncio.wait(self._closing)

    def session(self, device: DeviceId) -> Session:
        """Return the device's session, or raise LinkError."""
        try:
            return self._sessions[device]
        except KeyError:
            raise LinkError(f"device {device} is not connected over {self._transport}") from None

    def visit(self, device: DeviceId) -> Visit | None:
        """Return the device's visit now, or None."""
        return self._visits.get(device)

    # --- Fleet

    def devices(self) -> Set[DeviceId]:
        return self._visits.keys()

    async def deliver(self, device: DeviceId, parcel: Parcel) -> None:
        await self.session(device).deliver(parcel)

    async def fetch(self, device: DeviceId, ref: BlobRef, *, deadline_s: float) -> Path:
        if path := self._blobs.path(Digest(ref.digest)):
            return path
        return await self.session(device).fetch(ref, deadline_s=deadline_s)

    def cast(self, ref: BlobRef, devices: Iterable[DeviceId]) -> None:
        """Do nothing: this transport has no broadcast."""

    async def open_stream(
        self, device: DeviceId, kind: str, *, deadline_s: float, run: str = "", trace: str = ""
    ) -> Stream:
        session = self.session(device)
        return await session.open_stream(kind, deadline_s=deadline_s, run=run, trace=trace)

    async def dismiss(self, device: DeviceId, code: str, message: str) -> None:
        async with self._turn(device):
            session, visit = self._sessions.get(device), self._visits.get(device)
            self._forget(device)
            if visit is not None:
                visit.dismiss(RefusedError(code, message))
                await self._gate.absent(device, self._transport, message)
            if session is not None:
                await session.close(LinkError(f"device {device} was dismissed: {message}"))
