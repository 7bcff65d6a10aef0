"""One stream of a session: both directions, credit, acknowledgement, repair, and its end."""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from skerry_protos.errors import (
    DeadlineError,
    LinkError,
    PeerError,
    RejectCode,
    RejectedError,
    SkerryError,
)
from skerry_protos.session.flows import Inflowing, Outflow
from skerry_protos.session.frames import TEXT_LIMIT, Buffer, stream_parts
from skerry_protos.session.lanes import SMALLEST_CHUNK, Lanes
from skerry_protos.session.limits import Limits
from skerry_protos.session.timing import RoundTrip
from skerry_protos.v1 import fleet_pb2 as pb

FIRST_LIMIT: Final = 64 * 1024
"""What an opener may send before the first credit."""
ACK_DELAY_S: Final = 0.02
"""How long an acknowledgement may wait for more to acknowledge, on a wire that loses packets."""
FIRST_FLIGHT: Final = 4
LARGEST_FLIGHT: Final = 64
"""Pieces on such a wire and not acknowledged: grows by arrival, halves by loss."""
DEADLINE: Final = "deadline"


class LiveStream:
    """A stream while the session knows it; made by Streams."""

    def __init__(
        self,
        opening: pb.StreamOpen,
        *,
        opener: bool,
        window: int,
        lanes: Lanes,
        limits: Limits,
        round_trip: RoundTrip,
        on_over: Callable[["LiveStream", str, str], None],
    ) -> None:
        """Begin; `opening.limit` is what may be sent before the first credit."""
        self.number = opening.stream
        self.kind = opening.kind
        self.run = opening.run
        self.trace = opening.trace
        self.opener = opener
        self.window = window
        self.waiting = False  # in a lane; kept by Lanes
        self.error: SkerryError | None = None
        self._lanes = lanes
        self._limits = limits
        self._round_trip = round_trip
        self._on_over = on_over
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._ends_s = loop.time() + opening.lasts_s
        self._deadline = loop.call_later(opening.lasts_s, self._expire)
        # out
        self._out = Outflow()
        self._sent = 0
        self._most = 0  # the most that was ever sent
        self._credit = opening.limit
        self._met = not opener  # the other side knows of the stream
        self._paused = False  # until the other side says what it has, after a cut
        self._ending = False
        self._end_sent = False  # on this wire
        self._ever_ended = False  # on any
        self._end_acked = False
        self._flight = FIRST_FLIGHT
        self._repair: tuple[int, int] | None = None
        self._repeats = 0
        self._recover = 0  # losses before this offset are one loss
        self._timed: tuple[int, float] | None = None
        self._tries = 0
        self._timer: asyncio.TimerHandle | None = None
        # in
        self._in = Inflowing()
        self._granted = window
        self._acked = 0
        self._need = 0
        self._end: int | None = None
        self._draining = False
        self._ack_timer: asyncio.TimerHandle | None = None
        self._waiters: list[asyncio.Future[None]] = []

    # --- for the one who uses it

    async def send(self, message: bytes | bytearray | memoryview) -> None:
        """Send one message; wait while the other side has not read enough of those before."""
        if self._ending:
            raise RejectedError(RejectCode.UNEXPECTED, "this end of the stream has finished")
        if len(message) > self._limits.message:
            raise RejectedError(
                RejectCode.OVERSIZE,
                f"a stream's message has {len(message)} bytes, the limit is {self._limits.message}",
            )
        data = message if isinstance(message, bytes) else bytes(message)
        while self.error is None and not self._roomy:
            await self._change()
        if self.error is not None:
            raise self.error
        self._out.write(data)
        self._lanes.stream_ready(self)

    async def receive(self) -> bytes:
        """Return the next message; raise EOFError after the other side's clean end."""
        try:
            while True:
                found = self._take()
                if isinstance(found, bytes):
                    self._grant()
                    return found
                if self.error is not None:
                    raise self.error
                if self._end is not None and self._in.received >= self._end:
                    if self._in.waiting:
                        raise self._abort_as(PeerError("a stream ended within a message"))
                    raise EOFError("the stream has ended")
                self._need = found
                self._grant()
                await self._change()
        finally:
            self._need = 0

    def _take(self) -> bytes | int:
        try:
            return self._in.take_message(self._limits.message)
        except PeerError as error:
            raise self._abort_as(error) from error

    def _abort_as(self, error: SkerryError) -> SkerryError:
        """End the stream with `error` here and with its code there."""
        self.fail(error, code=error.code, message=str(error))
        return error

    async def finish(self) -> None:
        """End this direction and wait until the other side has everything."""
        self._ending = True
        self._lanes.stream_ready(self)
        while self.error is None and not self._end_acked:
            await self._change()
        if self.error is not None and not self._end_acked:
            raise self.error

    async def abort(self, code: str, message: str) -> None:
        """End both directions now; the other side raises RejectedError with this code."""
        error = RejectedError(code or "aborted", message)
        self.fail(error, code=error.code, message=message)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await self.receive()
        except EOFError:
            raise StopAsyncIteration from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            await self.finish()
            self.drain()
        elif isinstance(error, RejectedError):
            await self.abort(error.code, error.message)
        else:
            name = "" if kind is None else kind.__name__
            await self.abort("failed", f"{name}: {error}"[:TEXT_LIMIT])

    def drain(self) -> None:
        """Throw away what still comes: nobody will read it."""
        self._draining = True
        self._in.drop()
        self._grant()

    @property
    def _roomy(self) -> bool:
        """Whether the other side gives credit, and acknowledges what it got."""
        out = self._out
        return out.written < self._credit and out.written - out.acked < self._limits.stream_window

    async def _change(self) -> None:
        """Wait until something changes; a reader and a writer may wait at once."""
        change = self._loop.create_future()
        self._waiters.append(change)
        try:
            await change
        except asyncio.CancelledError:
            if change in self._waiters:
                self._waiters.remove(change)
            raise

    def _wake(self) -> None:
        """Let who waits for a change look again."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    # --- out

    @property
    def more(self) -> bool:
        """Whether there may be more to send now: bytes, a repair or the end."""
        written = self._out.written
        return self._sent < written or self._ending or self._repair is not None

    def next_parts(self) -> list[Buffer] | None:
        """Return the next piece to send; see lanes.Source."""
        if self.error is not None or self._paused:
            return None
        out, lanes = self._out, self._lanes
        if self._repair is not None:
            start, end = self._repair
            self._repair = None
            start, end = max(start, out.acked), min(end, self._sent)
            if start < end:
                size = min(end - start, lanes.piece)
                if start + size < end:
                    self._repair = (start + size, end)
                return stream_parts(lanes.number, self.number, start, *out.read(start, size))
        piece = lanes.piece
        end = min(out.written, self._credit)
        if not lanes.reliable:
            end = min(end, out.acked + self._flight * piece)
        size = min(end - self._sent, piece)
        if size > 0:
            start = self._sent
            self._sent += size
            self._most = max(self._most, self._sent)
            if not lanes.reliable:
                if self._timed is None:
                    self._timed = (self._sent, self._loop.time())
                self._arm()
            return stream_parts(lanes.number, self.number, start, *out.read(start, size))
        if self._ending and not self._end_sent and self._sent == out.written:
            self._send_end()
        return None

    def _send_end(self) -> None:
        self._end_sent = self._ever_ended = True
        end = pb.StreamEnd(stream=self.number, offset=self._out.written)
        self._lanes.control(("end", self.number), pb.Frame(stream_end=end))
        self._arm()

    def send_open(self) -> None:
        """Tell the other side of the stream."""
        opening = pb.StreamOpen(
            stream=self.number,
            kind=self.kind,
            run=self.run,
            trace=self.trace,
            lasts_s=max(0.001, self._ends_s - self._loop.time()),
            limit=self._granted,
        )
        self._lanes.control(("open", self.number), pb.Frame(stream_open=opening))
        self._arm()

    def _arm(self) -> None:
        """Have a look later whether what was sent has arrived."""
        if self._timer is None and self.error is None and not self._lanes.reliable:
            wait = self._round_trip.timeout_s(self._tries)
            self._timer = self._loop.call_later(wait, self._overdue)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _overdue(self) -> None:
        """Send the first thing again that was not acknowledged in time."""
        self._timer = None
        if self._lanes.wire is None or self.error is not None:
            return
        self._tries += 1
        self._timed = None
        if not self._met:
            self.send_open()
        if self._paused:
            self._paused = False
            self._sent = self._out.acked
        if self._sent > self._out.acked:
            self._lose()
            piece = max(SMALLEST_CHUNK, self._lanes.chunk >> min(self._tries // 2, 8))
            self._repair = (self._out.acked, self._out.acked + piece)
            self._arm()
        elif self._end_sent and not self._end_acked:
            self._send_end()
        self._lanes.stream_ready(self)

    def _lose(self) -> None:
        if self._out.acked >= self._recover:
            self._flight = max(2, self._flight // 2)
            self._recover = self._sent

    def take_credit(self, credit: pb.StreamCredit) -> None:
        """Take what the other side says it has and will take."""
        out = self._out
        if credit.received > self._most:
            raise PeerError(f"stream {self.number}: more is acknowledged than was sent")
        self._met = True
        before = out.acked
        progress = out.ack(credit.received)
        self._sent = out.acked if self._paused else max(self._sent, out.acked)
        self._paused = False
        if progress:
            self._progress(out.acked - before)
        if credit.held > out.acked and not self._lanes.reliable:
            self._mend(credit.held, progress=progress)
        self._credit = max(self._credit, credit.limit)
        if progress or self._roomy:
            self._wake()
        if credit.ended and not self._end_acked:
            if not self._ever_ended:
                self.fail(LinkError("the other side has forgotten the stream"))
                return
            self._end_acked = True
            self._wake()
            self._check_over()
        self._lanes.stream_ready(self)

    def _progress(self, size: int) -> None:
        self._lanes.moved(size)
        self._tries = 0
        self._repeats = 0
        if self._timed is not None and self._out.acked >= self._timed[0]:
            self._round_trip.sample(self._loop.time() - self._timed[1])
            self._timed = None
        if self._flight < LARGEST_FLIGHT and self._out.acked >= self._recover:
            self._flight += 1
        self._disarm()
        if self._out.acked < self._sent or (self._end_sent and not self._end_acked):
            self._arm()

    def _mend(self, held: int, *, progress: bool) -> None:
        """Send a gap again: at once while recovering, else when it was reported three times."""
        self._repeats += 1
        if self._repeats == 3 or (progress and self._out.acked < self._recover):
            self._timed = None
            self._lose()
            self._repair = (self._out.acked, min(held, self._sent))

    @property
    def busy(self) -> bool:
        """Whether something is sent and not acknowledged."""
        return self._sent > self._out.acked

    # --- in

    def take_data(self, offset: int, data: memoryview) -> None:
        """Take a piece; PeerError when it passes the credit or the stream's end."""
        if self._end is not None and offset + len(data) > self._end:
            raise PeerError(f"stream {self.number}: data after its end")
        grew = self._in.put(offset, data, self._granted)
        if grew:
            self._lanes.moved(len(data))
            if self._draining:
                self._in.drop()
            elif self._in.waiting >= self._need:
                self._wake()
            self._check_end()
        if self._lanes.reliable:
            self._grant()
        elif not grew or self._in.received - self._acked >= 2 * self._lanes.chunk:
            self._send_credit()
        elif self._ack_timer is None:
            self._ack_timer = self._loop.call_later(ACK_DELAY_S, self._send_credit)

    def take_end(self, offset: int) -> None:
        """Note where the other side's direction ends."""
        if self._end not in {None, offset} or not self._in.received <= offset <= self._granted:
            raise PeerError(f"stream {self.number}: it ends at {offset}, which cannot be")
        self._end = offset
        if self._ended:
            self._check_end()
        self._send_credit()

    @property
    def _ended(self) -> bool:
        return self._end is not None and self._in.received >= self._end

    def _check_end(self) -> None:
        if self._ended:
            self._wake()
            self._send_credit()
            self._check_over()

    def _grant(self) -> None:
        """Let the other side send more when a good part of the window was taken."""
        ahead = max(self.window, self._need)
        if self._in.taken + ahead >= self._granted + self.window // 4 or (
            self._need and self._granted < self._in.taken + self._need
        ):
            self._send_credit()

    def _send_credit(self) -> None:
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
        if self.error is not None:
            return
        self._granted = max(self._granted, self._in.taken + max(self.window, self._need))
        self._acked = self._in.received
        credit = pb.StreamCredit(
            stream=self.number,
            received=self._in.received,
            limit=self._granted,
            held=self._in.held,
            ended=self._ended,
        )
        self._lanes.control(("credit", self.number), pb.Frame(stream_credit=credit))

    # --- its life

    def attach(self) -> None:
        """Go on over a new wire: say what is here, and wait to hear what is there."""
        self._flight = FIRST_FLIGHT
        self._repair = self._timed = None
        self._recover = self._tries = 0
        self._end_sent = False
        # What was sent before may be there: sending it at once could wear out each next wire too.
        self._paused = self._met or self._sent > 0
        if self._met:
            self._send_credit()
        else:
            self.send_open()
        self._arm()
        self._lanes.stream_ready(self)

    def answer_open(self) -> None:
        """Answer an opening, also a repeated one: say what may be sent.

        Who repeats it has heard nothing yet, so there is nothing to wait for before sending.
        """
        if self._paused:
            self._paused = False
            self._sent = self._out.acked
        self._send_credit()
        self._lanes.stream_ready(self)

    def detach(self) -> None:
        """Stop the clocks until the next wire; the deadline goes on."""
        self._disarm()
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None

    def _expire(self) -> None:
        message = f"stream {self.kind!r} reached its deadline"
        self.fail(DeadlineError(message), code=DEADLINE, message=message)

    def _check_over(self) -> None:
        if self._end_acked and self._ended and self.error is None:
            self._stop("", "")

    def fail(self, error: SkerryError, *, code: str = "", message: str = "") -> None:
        """End both directions with an error; with a code, tell the other side."""
        if self.error is None and not (self._end_acked and self._ended):
            self.error = error
            self._stop(code, message)

    def _stop(self, code: str, message: str) -> None:
        self.detach()
        self._deadline.cancel()
        self._wake()
        self._on_over(self, code, message)
