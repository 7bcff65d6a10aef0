"""One run of a world, what its devices noted of it, and what one without faults comes to."""

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skerry_devices.client import at

if TYPE_CHECKING:
    from tests.faults.world import Boat, World

RUN_S = 120.0
OVER = {"completed", "failed", "stopped", "interrupted"}
CROSSED = dict[str, tuple[int, int]]
"""Bytes up and down, by device."""


@dataclass(frozen=True, slots=True, kw_only=False)
class Clean:
    """A run without faults: its model's digest, seconds, bytes on the wire, largest memory."""

    model: str
    seconds: float
    moved: int
    resident: dict[str, int]


@dataclass
class Trip:
    """One run, and what the devices noted of it."""

    world: "World"
    id: str
    rounds: int
    report: Path
    before: CROSSED

    def detail(self) -> dict[str, Any]:
        found: dict[str, Any] = self.world.ask(at("runs", self.id))
        return found

    def over(self) -> bool:
        return self.detail()["state"] in OVER

    def end(self, timeout_s: float = RUN_S) -> dict[str, Any]:
        """Return the run when it is over; one that does not end is an AssertionError."""
        ends = time.monotonic() + timeout_s
        while (found := self.detail())["state"] not in OVER:
            if time.monotonic() > ends:
                raise AssertionError(f"{self.id} is {found['state']}: {found['waiting']}")
            time.sleep(0.05)
        return found

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        """Return the journal, or what is of these kinds."""
        found: list[dict[str, Any]] = []
        while True:
            after = found[-1]["id"] if found else 0
            page = self.world.ask(at("runs", self.id, "events"), after=after)["items"]
            found += page
            if not page:
                return [event for event in found if not kinds or event["kind"] in kinds]

    def task_of(self, device: str, round_: int) -> str:
        """Return a device's task of a round, once it has answered it."""

        def found() -> list[str]:
            replies = self.events("reply")
            return [
                str(one["data"]["task"])
                for one in replies
                if (one["device"], one["round"]) == (device, round_)
            ]

        self.wait(lambda: bool(found()), f"{device}'s answer of round {round_}")
        return found()[0]

    def noted(self, device: str) -> list[dict[str, Any]]:
        """Return what a device noted of its trainings."""
        with contextlib.suppress(FileNotFoundError):
            lines = (self.report / device).read_text().splitlines()
            return [json.loads(line) for line in lines if line.endswith("}")]
        return []

    def has(self, device: str, what: str, round_: int = 1) -> bool:
        """Return whether a device has begun or ended its training of a round."""
        return any(n["what"] == what and n["round"] == round_ for n in self.noted(device))

    def wait(self, claim: Callable[[], bool], what: str, timeout_s: float = 60.0) -> bool:
        """Return True once a claim holds, False when the run is over before it does."""
        ends = time.monotonic() + timeout_s
        look = 0
        while not claim():
            look += 1
            if look % 50 == 0 and self.over():
                return claim()
            if time.monotonic() > ends:
                raise AssertionError(f"{self.id}: not within {timeout_s:g} s: {what}")
            time.sleep(0.004)
        return True

    def moved(self) -> int:
        """Return the bytes that crossed since the run began, both ways, all devices."""
        after = self.world.crossed()
        return sum(sum(after[n]) - sum(b) for n, b in self.before.items() if n in after)

    def sent_up(self, boat: "Boat") -> int:
        """Return the bytes a device has sent since the run began."""
        return boat.proxy.up - self.before[boat.name][0]
