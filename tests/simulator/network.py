"""The sea: a wire per connection, as good or bad as its device's weather is at the moment.

A reliable wire (as gRPC's) keeps order and holds packets back while the way is blocked; the other
kind (as MQTT's) loses, repeats and reorders them. A cut is seen by both ends, a silence by none.
What is under way arrives though its sender has died.
"""

import asyncio
import random
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from skerry_protos.errors import LinkError

from tests.simulator.loop import NOBODY, NODE
from tests.simulator.trace import Trace

PACKETS = 64
"""Packets under way before the sender waits."""


@dataclass(kw_only=True)
class Weather:
    """How the way between one device and the coordinator is now."""

    reliable: bool = True
    delay_s: float = 0.01
    jitter_s: float = 0.0
    bytes_per_s: float = 10e6
    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    cut: float = 0.0  # for each packet
    chunk: int = 65536
    blocked_up: bool = False
    blocked_down: bool = False
    ends: list["End"] = field(default_factory=list)
    wires: int = 0
    bytes: int = 0

    @property
    def blocked(self) -> bool:
        """Whether no connection can be made."""
        return self.blocked_up or self.blocked_down


class _Way:
    """One direction of a wire."""

    def __init__(self, weather: Weather, dice: random.Random, name: str, trace: Trace) -> None:
        self.weather, self.name = weather, name
        self.packets: deque[bytes] = deque()
        self.held: list[bytes] = []  # blocked, on a reliable wire
        self.under_way = 0
        self.silent = False
        self.readable, self.writable = asyncio.Event(), asyncio.Event()
        self.writable.set()
        self._dice, self._trace = dice, trace
        self._free_s = self._last_s = 0.0
        self._up = name.endswith(">")

    @property
    def blocked(self) -> bool:
        return self.weather.blocked_up if self._up else self.weather.blocked_down

    def throw(self, packet: bytes) -> bool:
        """Send a packet into the weather; False when the wire is cut by it."""
        weather, dice = self.weather, self._dice.random
        weather.bytes += len(packet)
        self._trace.packet(self.name, packet)
        if weather.cut and dice() < weather.cut:
            return False
        if self.silent:
            return True
        if self.blocked:
            if weather.reliable:
                self.held.append(packet)
                self._fill()
            return True
        self._fly(packet)
        return True

    def _fly(self, packet: bytes) -> None:
        weather, dice = self.weather, self._dice.random
        loop = asyncio.get_running_loop()
        self._free_s = max(loop.time(), self._free_s) + len(packet) / weather.bytes_per_s
        if not weather.reliable and dice() < weather.drop:
            return
        for _ in range(1 + (not weather.reliable and dice() < weather.duplicate)):
            due = self._free_s + weather.delay_s + weather.jitter_s * dice()
            if weather.reliable or dice() >= weather.reorder:
                due = self._last_s = max(due, self._last_s + 1e-6)
            else:
                due += 0.05 * dice()
            self.under_way += 1
            loop.call_at(due, self._arrive, packet, context=NOBODY)
        self._fill()

    def _arrive(self, packet: bytes) -> None:
        self.under_way -= 1
        if not self.silent:
            self.packets.append(packet)
            self.readable.set()
        elif self.under_way < PACKETS // 2:
            self.writable.set()

    def _fill(self) -> None:
        if len(self.packets) + self.under_way + len(self.held) >= PACKETS:
            self.writable.clear()

    def take(self) -> bytes:
        packet = self.packets.popleft()
        if not self.packets:
            self.readable.clear()
        if len(self.packets) + self.under_way + len(self.held) < PACKETS // 2:
            self.writable.set()
        return packet

    def unblock(self) -> None:
        """Send what was held back."""
        held, self.held = self.held, []
        for packet in held:
            self._fly(packet)


class End:
    """One end of a wire: a Wire that is also read."""

    max_packet = max_received = 1024**2

    def __init__(self, weather: Weather, out: _Way, into: _Way, over: asyncio.Event) -> None:
        self.chunk, self.reliable = weather.chunk, weather.reliable
        self.exact = weather.reliable
        self._weather, self._out, self._into, self._over = weather, out, into, over

    async def send(self, packet: bytes) -> None:
        """Send one packet, waiting while too many are under way."""
        node = NODE.get()
        if node is not None and not node.alive:
            return
        if len(packet) > self.max_packet:
            raise LinkError(f"a packet of {len(packet)} bytes, the wire takes {self.max_packet}")
        await self._out.writable.wait()
        if self._over.is_set():
            raise LinkError("the wire was cut")
        if not self._out.throw(packet):
            self.close()

    async def receive(self) -> bytes:
        """Return the next packet; raise LinkError once the wire is cut."""
        while not self._into.packets:
            if self._over.is_set():
                raise LinkError("the wire was cut")
            await self._into.readable.wait()
        return self._into.take()

    async def read(self, take: Callable[[bytes], None]) -> None:
        """Hand over every packet until the wire is cut."""
        while True:
            take(await self.receive())

    def close(self) -> None:
        """Cut the wire, both ways; what was under way is lost."""
        if self._over.is_set():
            return
        self._over.set()
        for way in (self._out, self._into):
            way.silent = True
            way.readable.set()
            way.writable.set()
        if self in self._weather.ends:
            self._weather.ends.remove(self)

    def fall_silent(self) -> None:
        """Lose every packet from now on, both ways, and tell nobody."""
        self._out.silent = self._into.silent = True

    def unblock(self) -> None:
        """Send what was held back while the way was blocked."""
        for way in (self._out, self._into):
            if not way.blocked:
                way.unblock()


class Network:
    """Every device's way to the coordinator, and who listens there."""

    def __init__(self, seed: int, weathers: dict[str, Weather], trace: Trace) -> None:
        self._seed, self._trace = seed, trace
        self.weathers = weathers
        self.welcome: Callable[[str, End], None] | None = None
        """The coordinator's part: takes its end of a new wire; None while it is down."""

    async def dial(self, device: str) -> End:
        """Return the device's end of a new wire, or raise LinkError."""
        weather = self.weathers[device]
        await asyncio.sleep(2 * weather.delay_s)
        if weather.blocked:
            await asyncio.sleep(3600.0)  # nobody answers; who dials gives up earlier
        if self.welcome is None:
            raise LinkError("connection refused: nobody listens")
        weather.wires += 1
        dice = random.Random(f"{self._seed}/{device}/{weather.wires}")
        up = _Way(weather, dice, f"{device} >", self._trace)
        down = _Way(weather, dice, f"{device} <", self._trace)
        over = asyncio.Event()
        theirs, ours = End(weather, up, down, over), End(weather, down, up, over)
        weather.ends.append(ours)
        self.welcome(device, ours)
        return theirs

    def cut(self, device: str) -> None:
        """Cut every wire of a device."""
        for end in list(self.weathers[device].ends):
            end.close()

    def silence(self, device: str) -> None:
        """Leave every wire of a device half open: both ends believe in it."""
        for end in self.weathers[device].ends:
            end.fall_silent()

    def block(self, device: str, *, up: bool, down: bool) -> None:
        """Let nothing pass in these directions."""
        weather = self.weathers[device]
        weather.blocked_up, weather.blocked_down = up, down
        for end in list(weather.ends):
            end.unblock()

    def calm(self) -> None:
        """Make every way a good one from now on."""
        for device, weather in self.weathers.items():
            weather.drop = weather.duplicate = weather.reorder = weather.cut = 0.0
            self.block(device, up=False, down=False)

    @property
    def bytes(self) -> int:
        """What was sent in all."""
        return sum(weather.bytes for weather in self.weathers.values())

    def checksums(self) -> Iterator[int]:
        """Yield a number for each device's traffic."""
        for name, weather in sorted(self.weathers.items()):
            yield zlib.crc32(f"{name} {weather.bytes} {weather.wires}".encode())
