"""The streams of one session: opening, accepting, and remembering those that are over."""

import asyncio
import logging
import math
from typing import Final

from skerry_protos.errors import (
    DeadlineError,
    LinkError,
    PeerError,
    RejectCode,
    RejectedError,
    SkerryError,
)
from skerry_protos.messages import ID_LIMIT
from skerry_protos.seams import Receiver, Stream
from skerry_protos.session.frames import TEXT_LIMIT, readable_id
from skerry_protos.session.lanes import Lanes
from skerry_protos.session.limits import Limits
from skerry_protos.session.stream import DEADLINE, FIRST_LIMIT, LiveStream
from skerry_protos.session.timing import RoundTrip
from skerry_protos.v1 import fleet_pb2 as pb

log = logging.getLogger(__name__)

SPREAD: Final = 65536
"""How far apart the numbers of streams that are being opened may lie."""
LONGEST_S: Final = 7 * 86400.0
AGAIN_S: Final = 1.0
"""How often an abort is repeated, on a wire that loses packets, until it is acknowledged."""
REPEAT_S: Final = 600.0


class _Seen:
    """The numbers of the streams that the other side has opened: each is served once."""

    def __init__(self, first: int) -> None:
        self.floor = first  # every number before it was seen
        self._beyond: set[int] = set()

    def __contains__(self, number: int) -> bool:
        return number < self.floor or number in self._beyond

    def add(self, number: int) -> None:
        if number > self.floor + 2 * SPREAD:
            raise PeerError(f"stream {number} is opened long before {self.floor}")
        self._beyond.add(number)
        while self.floor in self._beyond:
            self._beyond.discard(self.floor)
            self.floor += 2


class Streams:
    """Every stream of one session; the device opens odd ones, the cloud even ones."""

    def __init__(self, *, device: bool, lanes: Lanes, receiver: Receiver, limits: Limits) -> None:
        self._first_own, self._first_theirs = (1, 2) if device else (2, 1)
        self._next = self._first_own
        self._lanes = lanes
        self._receiver = receiver
        self._limits = limits
        self._round_trip = RoundTrip()
        self._live: dict[int, LiveStream] = {}
        self._seen = _Seen(self._first_theirs)
        self._aborts: dict[int, tuple[pb.Frame, float]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._serving: dict[int, asyncio.Task[None]] = {}
        self._theirs = 0
        self._windows = 0
        self.error: SkerryError | None = None

    def open(self, kind: str, *, deadline_s: float, run: str, trace: str) -> LiveStream:
        """Open a stream to the other side."""
        if self.error is not None:
            raise self.error
        if not readable_id(kind) or len(run) > ID_LIMIT or len(trace) > ID_LIMIT:
            raise RejectedError(
                RejectCode.MALFORMED,
                f"a stream's kind, run and trace have at most {ID_LIMIT} characters",
            )
        if not 0 < deadline_s <= LONGEST_S:
            raise DeadlineError(
                f"stream {kind!r}: a deadline of {deadline_s:g} s is no time to come"
            )
        opening = pb.StreamOpen(
            stream=self._next,
            kind=kind,
            run=run,
            trace=trace,
            lasts_s=deadline_s,
            limit=FIRST_LIMIT,
        )
        self._next += 2
        stream = self._make(opening, opener=True)
        stream.send_open()
        return stream

    def _make(self, opening: pb.StreamOpen, *, opener: bool) -> LiveStream:
        share = (self._limits.streams_window - self._windows) // 4
        window = max(FIRST_LIMIT, min(self._limits.stream_window, share))
        stream = LiveStream(
            opening,
            opener=opener,
            window=window,
            lanes=self._lanes,
            limits=self._limits,
            round_trip=self._round_trip,
            on_over=self._over,
        )
        self._live[opening.stream] = stream
        self._windows += window
        self._theirs += not opener
        return stream

    def _over(self, stream: LiveStream, code: str, message: str) -> None:
        """Forget a stream that has ended; tell the other side when it was aborted here."""
        if self._live.pop(stream.number, None) is None:
            return
        self._windows -= stream.window
        self._theirs -= not stream.opener
        if code:
            self._abort(stream.number, code, message)

    def _abort(self, number: int, code: str, message: str) -> None:
        end = pb.StreamEnd(stream=number, code=code[:64], message=message[:TEXT_LIMIT])
        frame = pb.Frame(stream_end=end)
        until = asyncio.get_running_loop().time() + REPEAT_S
        if len(self._aborts) < self._limits.streams * 4:
            self._aborts[number] = (frame, until)
        self._lanes.control(("end", number), frame)
        self._repeat_later()

    def _repeat_later(self) -> None:
        if self._timer is None and self._aborts and not self._lanes.reliable:
            self._timer = asyncio.get_running_loop().call_later(AGAIN_S, self._repeat)

    def _repeat(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        self._aborts = {key: value for key, value in self._aborts.items() if value[1] > now}
        for number, (frame, _) in self._aborts.items():
            self._lanes.control(("end", number), frame)
        if self._lanes.wire is not None:
            self._repeat_later()

    def attach(self, *, resumed: bool) -> None:
        """Go on over a new wire; streams of a session that the other side forgot are lost."""
        if not resumed:
            lost = LinkError("the stream was lost: the other side began a new session")
            for stream in list(self._live.values()):
                stream.fail(lost)
            self._seen = _Seen(self._first_theirs)
            self._next = self._first_own
            self._aborts.clear()
        for stream in list(self._live.values()):
            stream.attach()
        self._repeat()

    def detach(self) -> None:
        """Wait for the next wire."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for stream in self._live.values():
            stream.detach()

    async def close(self, error: SkerryError) -> None:
        """Fail every stream and wait for those who serve them."""
        self.error = error
        self.detach()
        for stream in list(self._live.values()):
            stream.fail(error)
        tasks = [task for task in self._serving.values() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    @property
    def busy(self) -> bool:
        """Whether something is under way."""
        return any(stream.busy for stream in self._live.values())

    # --- arrivals

    def take_open(self, opening: pb.StreamOpen) -> None:
        """Serve a stream that the other side opened, once."""
        number = opening.stream
        if number % 2 != self._first_theirs % 2 or number == 0:
            raise PeerError(f"stream {number} is not the other side's to open")
        if number in self._live:
            self._live[number].answer_open()
            return
        if number in self._seen:
            self._answer_gone(number)
            return
        self._seen.add(number)
        if why := _flaw(opening):
            self._abort(number, RejectCode.MALFORMED, why)
            return
        if self._theirs >= self._limits.streams:
            self._abort(number, "busy", f"{self._limits.streams} streams are open already")
            return
        opening.lasts_s = min(opening.lasts_s, LONGEST_S)
        stream = self._make(opening, opener=False)
        stream.answer_open()
        self._serving[number] = asyncio.ensure_future(self._serve(stream))

    async def _serve(self, stream: LiveStream) -> None:
        try:
            async with stream:
                served: Stream = stream
                await self._receiver.serve(served)
        except SkerryError as error:
            log.info("stream %r ended: %s", stream.kind, error)
        except Exception:
            log.exception("stream %r failed", stream.kind)
        finally:
            self._serving.pop(stream.number, None)

    def take_data(self, piece: pb.StreamData, data: memoryview) -> None:
        """Take a piece of a stream."""
        stream = self._live.get(piece.stream)
        if stream is not None:
            try:
                stream.take_data(piece.offset, data)
            except PeerError as error:
                stream.fail(error, code=RejectCode.MALFORMED, message=str(error))
                raise
        elif self._known(piece.stream):
            self._answer_gone(piece.stream)

    def take_credit(self, credit: pb.StreamCredit) -> None:
        """Take an acknowledgement."""
        if credit.ended:
            self._aborts.pop(credit.stream, None)
        stream = self._live.get(credit.stream)
        if stream is not None:
            stream.take_credit(credit)
        elif self._known(credit.stream) and credit.limit:  # of a stream that lives on there
            self._answer_gone(credit.stream)

    def take_end(self, end: pb.StreamEnd) -> None:
        """Take the end of a direction, or an abort of both."""
        number = end.stream
        stream = self._live.get(number)
        if not end.code:
            if stream is not None:
                stream.take_end(end.offset)
            elif self._known(number):
                self._answer_gone(number)
            return
        if stream is not None:
            text = end.message[:TEXT_LIMIT]
            code = end.code[:64]
            stream.fail(DeadlineError(text) if code == DEADLINE else RejectedError(code, text))
        elif number % 2 == self._first_theirs % 2 and number not in self._seen:
            self._seen.add(number)  # its opening may still come, and must not be served
        self._acknowledge(number)

    def _known(self, number: int) -> bool:
        """Return whether a stream that is not live was; raise PeerError if it never can have been.

        False: its opening has not come yet, which it will.
        """
        if number % 2 == self._first_own % 2:
            if number >= self._next:
                raise PeerError(f"stream {number} was never opened")
            return True
        return number in self._seen

    def _answer_gone(self, number: int) -> None:
        """Answer something of a stream that is over here, so that it ends there too."""
        abort = self._aborts.get(number)
        if abort is not None:
            self._lanes.control(("end", number), abort[0])
        else:
            self._acknowledge(number)

    def _acknowledge(self, number: int) -> None:
        """Say that the stream is over here; without a limit, so that it needs no answer."""
        credit = pb.StreamCredit(stream=number, ended=True)
        self._lanes.control(("credit", number), pb.Frame(stream_credit=credit))


def _flaw(opening: pb.StreamOpen) -> str | None:
    """Return what makes no sense in an opening, or None."""
    if not readable_id(opening.kind):
        return f"a stream's kind must be 1 to {ID_LIMIT} visible characters"
    if len(opening.run) > ID_LIMIT or len(opening.trace) > ID_LIMIT:
        return f"a stream's run or trace is longer than {ID_LIMIT} characters"
    if not (math.isfinite(opening.lasts_s) and opening.lasts_s > 0):
        return "a stream's deadline is no time to come"
    return None
