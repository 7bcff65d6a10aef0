"""Parcels of one session: sent until answered, accepted once, answered again when repeated."""

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final

from skerry_protos.errors import (
    DeadlineError,
    PeerError,
    RejectCode,
    RejectedError,
    SkerryError,
    TrustError,
)
from skerry_protos.messages import ID_LIMIT, Parcel
from skerry_protos.seams import Receiver
from skerry_protos.session.frames import TEXT_LIMIT, parcel_message, read_parcel, readable_id
from skerry_protos.session.lanes import Lanes
from skerry_protos.session.limits import Limits
from skerry_protos.session.timing import RoundTrip
from skerry_protos.v1 import fleet_pb2 as pb

log = logging.getLogger(__name__)

SHORTEST_RESEND_S: Final = 1.0
LONGEST_RESEND_S: Final = 15.0
RELIABLE_RESEND_S: Final = 60.0
"""On a wire that loses nothing a late answer is only late; it is asked for all the same."""
LATER_S: Final = 2.0
"""When to send a parcel again that could not be stored (a full disk, a busy store)."""
BUSY_S: Final = 1.0
MARGIN: Final = 64
"""Bytes of a packet around a parcel."""


class _Outgoing:
    """A parcel that the other side has not answered yet."""

    __slots__ = ("answer", "flying", "message", "timer", "tries", "users")

    def __init__(self, message: pb.Parcel) -> None:
        self.message = message
        self.answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.users = 0
        self.tries = 0
        self.flying = False
        self.timer: asyncio.TimerHandle | None = None


class Parcels:
    """The parcels of one session, both ways."""

    def __init__(
        self,
        lanes: Lanes,
        receiver: Receiver,
        limits: Limits,
        round_trip: RoundTrip,
        *,
        now: Callable[[], float],
        on_refused: Callable[[str, RejectedError], None],
    ) -> None:
        self._lanes = lanes
        self._receiver = receiver
        self._limits = limits
        self._round_trip = round_trip
        self._now = now  # as deadlines are
        self._on_refused = on_refused
        self._outgoing: dict[str, _Outgoing] = {}
        self._queue: deque[_Outgoing] = deque()
        self._flying = 0
        self._accepting: dict[str, asyncio.Task[None]] = {}
        self._known: OrderedDict[str, tuple[str, str] | None] = OrderedDict()
        self.error: SkerryError | None = None

    async def deliver(self, parcel: Parcel) -> None:
        """Send until answered; raise RejectedError, DeadlineError, or why the session ended."""
        message = parcel_message(parcel)
        if self.error is not None:
            raise self.error
        if parcel.expired(self._now()):
            raise DeadlineError(f"parcel {parcel.id} ({parcel.kind}) is past its deadline")
        outgoing = self._outgoing.get(parcel.id)
        if outgoing is None:
            outgoing = self._outgoing[parcel.id] = _Outgoing(message)
            self._queue.append(outgoing)
            self._fly()
        wait = parcel.deadline_unix_s - self._now() if parcel.deadline_unix_s else None
        outgoing.users += 1
        try:
            async with asyncio.timeout(wait):
                await asyncio.shield(outgoing.answer)
        except TimeoutError as error:
            raise DeadlineError(
                f"parcel {parcel.id} ({parcel.kind}) was not stored by the other side before its "
                "deadline"
            ) from error
        finally:
            outgoing.users -= 1
            if outgoing.users == 0:
                self._drop(outgoing)

    def attach(self, *, resumed: bool) -> None:
        """Send all that is not answered again, on the new wire."""
        if not resumed:
            self._known.clear()
        self._queue = deque(self._outgoing.values())
        self._fly()

    def detach(self) -> None:
        """Wait for the next wire."""
        for outgoing in self._outgoing.values():
            self._land(outgoing)

    async def close(self, error: SkerryError) -> None:
        """Fail what is not answered, and stop accepting."""
        self.error = error
        for outgoing in list(self._outgoing.values()):
            self._settle(outgoing, error)
        tasks = [task for task in self._accepting.values() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # --- sending

    def _fly(self) -> None:
        """Send parcels from the queue while few enough are on the wire."""
        while self._queue and self._flying < self._limits.parcels_out and self._lanes.wire:
            outgoing = self._queue.popleft()
            if not outgoing.answer.done() and not outgoing.flying:
                outgoing.flying = True
                self._flying += 1
                self._send(outgoing)

    def _send(self, outgoing: _Outgoing) -> None:
        message = outgoing.message
        if message.ByteSize() + MARGIN > self._lanes.max_packet:
            self._settle(
                outgoing,
                RejectedError(
                    RejectCode.OVERSIZE,
                    f"parcel {message.id} has {message.ByteSize()} bytes, this wire takes "
                    f"{self._lanes.max_packet - MARGIN}: send its body as a blob",
                ),
            )
            return
        self._lanes.control(("parcel", message.id), pb.Frame(parcel=message))
        if self._lanes.reliable:
            wait = RELIABLE_RESEND_S
        else:
            wait = max(SHORTEST_RESEND_S, self._round_trip.timeout_s()) * 2.0 ** min(
                outgoing.tries, 5
            )
            wait = min(LONGEST_RESEND_S, wait)
        outgoing.tries += 1
        self._again(outgoing, wait)

    def _again(self, outgoing: _Outgoing, wait_s: float) -> None:
        if outgoing.timer is not None:
            outgoing.timer.cancel()
        loop = asyncio.get_running_loop()
        outgoing.timer = loop.call_later(wait_s, self._resend, outgoing)

    def _resend(self, outgoing: _Outgoing) -> None:
        if outgoing.flying:
            self._send(outgoing)
        else:
            self._queue.append(outgoing)
            self._fly()

    def _land(self, outgoing: _Outgoing) -> None:
        if outgoing.timer is not None:
            outgoing.timer.cancel()
            outgoing.timer = None
        if outgoing.flying:
            outgoing.flying = False
            self._flying -= 1

    def _settle(self, outgoing: _Outgoing, error: SkerryError | None) -> None:
        if not outgoing.answer.done():
            if error is None:
                outgoing.answer.set_result(None)
            else:
                outgoing.answer.set_exception(error)
                outgoing.answer.exception()  # it may be that nobody waits any more
        self._drop(outgoing)

    def _drop(self, outgoing: _Outgoing) -> None:
        self._land(outgoing)
        if self._outgoing.get(outgoing.message.id) is outgoing:
            del self._outgoing[outgoing.message.id]
        self._fly()

    def take_ack(self, ack: pb.Ack) -> None:
        """Note that parcels were stored."""
        for parcel in ack.parcels:
            if outgoing := self._outgoing.get(parcel):
                self._settle(outgoing, None)

    def take_reject(self, reject: pb.Reject) -> None:
        """Note that a parcel was rejected, for good or for now."""
        outgoing = self._outgoing.get(reject.parcel)
        if outgoing is None:
            return
        if reject.retry_after_s > 0:
            self._land(outgoing)
            self._again(outgoing, min(reject.retry_after_s, LONGEST_RESEND_S))
            self._fly()
            return
        self._settle(outgoing, RejectedError(reject.code[:64], reject.message[:TEXT_LIMIT]))

    # --- receiving

    def take(self, message: pb.Parcel) -> None:
        """Accept a parcel once; answer one that is known as before."""
        parcel = message.id
        if not readable_id(parcel):
            raise PeerError(f"a parcel's id is not 1 to {ID_LIMIT} visible characters")
        if parcel in self._known:
            self._known.move_to_end(parcel)
            self._answer(parcel, self._known[parcel])
            return
        if parcel in self._accepting:
            return
        if len(self._accepting) >= self._limits.parcels_in:
            self._later(parcel, "too many parcels at once", BUSY_S)
            return
        try:
            read = read_parcel(message)
        except RejectedError as error:
            self._remember(parcel, (error.code, error.message))
            self._on_refused(message.run[:ID_LIMIT], error)
            return
        task = asyncio.ensure_future(self._accept(read))
        self._accepting[parcel] = task

    async def _accept(self, parcel: Parcel) -> None:
        try:
            await self._receiver.accept(parcel)
        except RejectedError as error:
            self._remember(parcel.id, (error.code, error.message))
        except PeerError as error:
            self._remember(parcel.id, (RejectCode.MALFORMED, str(error)))
        except TrustError as error:
            self._remember(parcel.id, (RejectCode.BLOB, str(error)))
        except SkerryError as error:
            log.warning("parcel %s (%s) cannot be stored now: %s", parcel.id, parcel.kind, error)
            self._later(parcel.id, str(error), LATER_S)
        except Exception as error:
            log.exception("parcel %s (%s) cannot be stored now", parcel.id, parcel.kind)
            self._later(parcel.id, f"{type(error).__name__}: {error}", LATER_S)
        else:
            self._remember(parcel.id, None)
        finally:
            del self._accepting[parcel.id]

    def _remember(self, parcel: str, answer: tuple[str, str] | None) -> None:
        self._known[parcel] = answer
        if len(self._known) > self._limits.parcels_known:
            self._known.popitem(last=False)
        self._answer(parcel, answer)

    def _answer(self, parcel: str, answer: tuple[str, str] | None) -> None:
        if answer is None:
            self._lanes.ack(parcel)
        else:
            code, text = answer
            reject = pb.Reject(parcel=parcel, code=code, message=text[:TEXT_LIMIT])
            self._lanes.control(("reject", parcel), pb.Frame(reject=reject))

    def _later(self, parcel: str, text: str, wait_s: float) -> None:
        reject = pb.Reject(
            parcel=parcel, code="later", message=text[:TEXT_LIMIT], retry_after_s=wait_s
        )
        self._lanes.control(("reject", parcel), pb.Frame(reject=reject))
