"""Bad input from a device that is enrolled: refused, counted and named; row 15."""

import io
import os
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import zstandard
from skerry_protos import records
from skerry_protos.codecs import STYPE
from skerry_protos.codecs.methods import Method
from skerry_protos.codecs.updates import coded_group
from skerry_protos.messages import Parcel, ParcelId
from skerry_protos.records import MetricValue, Records
from skerry_protos.tensors import DType, Tensor
from skerry_protos.v1 import codecs_pb2, records_pb2, work_pb2
from skerry_protos.v1 import fleet_pb2 as pb

from tests.faults.mallory import Mallory
from tests.faults.table import Tally, row
from tests.faults.trips import Trip
from tests.faults.world import SIZE, World

FLOATS = SIZE // 4
BOMB = 256_000_000
EXAMPLES: dict[str, MetricValue] = {"num-examples": 10}


def plain(w: Any) -> bytes:
    """Return a reply's content with these weights."""
    made = Records(arrays={"arrays": {"w": Tensor.of(w)}}, metrics={"metrics": EXAMPLES})
    return records.to_bytes(made)


def shaped(*shape: int, nbytes: int) -> bytes:
    """Return records of a few bytes whose header speaks of a tensor of this shape."""
    header = records_pb2.Records()
    group = header.arrays.add(name="arrays")
    group.tensors.add(name="w", dtype=DType.FLOAT32, shape=shape, nbytes=nbytes, offset=64)
    head = header.SerializeToString()
    return struct.pack("<4sI", b"SKR1", len(head)) + head + bytes(128)


def coded(frame: bytes, shape: tuple[int, ...] = (FLOATS,)) -> bytes:
    """Return a coded update all of whose parts are this zstd frame."""
    header = codecs_pb2.Coded(relative=True)
    spec = header.tensors.add(name="w", dtype=DType.FLOAT32, shape=shape, method=Method.FLOAT32)
    for _ in range(4):  # a plane for each byte of an element
        spec.parts.add(size=len(frame), zstd=True)
    head = header.SerializeToString()
    opaque = Tensor.opaque(
        struct.pack("<4sI", b"SKC1", len(head)) + head + 4 * frame, STYPE, "", ()
    )
    made = Records(arrays={"arrays": coded_group(opaque)}, metrics={"metrics": EXAMPLES})
    return records.to_bytes(made)


def bomb() -> bytes:
    """Return a zstd frame of some kB that opens to BOMB bytes, and says so."""
    return zstandard.ZstdCompressor().compress(bytes(BOMB))


def silent_bomb() -> bytes:
    """Return one that does not say how large it is."""
    made = io.BytesIO()
    with zstandard.ZstdCompressor().stream_writer(made, closefd=False) as writer:
        writer.write(bytes(BOMB))
    return made.getvalue()


def lying_bomb() -> bytes:
    """Return one that says it has as many bytes as are expected."""
    frame = bomb()
    said = struct.pack("<I", BOMB)
    assert said in frame[:18]
    return frame.replace(said, struct.pack("<I", FLOATS), 1)


def reply(content: Callable[[], bytes]) -> Callable[[Mallory, Parcel], None]:
    """Return what answers a task with this content, which crosses and is then refused."""

    def act(mallory: Mallory, task: Parcel) -> None:
        assert mallory.deliver(mallory.with_content(task, content())) == ""

    return act


def rejected(make: Callable[[Mallory, Parcel], Parcel], code: str) -> Any:
    """Return what answers a task with a parcel that is rejected."""

    def act(mallory: Mallory, task: Parcel) -> None:
        found = mallory.deliver(make(mallory, task))
        assert found == code, f"rejected as {found!r}, not {code!r}"

    return act


def other_task(mallory: Mallory, task: Parcel) -> Parcel:
    """Answer the old round's question under the new one's name."""
    old = mallory.answer(mallory.tasks[0])
    return mallory.answer(task, old.body)


def garbage(mallory: Mallory, task: Parcel) -> None:
    """Refer to a blob of 2^62 bytes, which no session sends: it is refused before it is read."""
    parcel = pb.Parcel(id=f"{task.id}/reply", kind="reply", run=task.run, round=task.round)
    parcel.blobs.add(digest=bytes(32), size=2**62, role="content")
    mallory.say(parcel=parcel)
    mallory.beat()
    mallory.leave()
    mallory.connect()
    assert mallory.deliver(mallory.answer(task)) == ""


def broken(mallory: Mallory, task: Parcel) -> None:
    """Break the protocol in mid-round: it is cut, and comes back."""
    before = len(mallory.refusals)
    mallory.send(os.urandom(300))
    mallory.wait(lambda: len(mallory.refusals) > before, "a refusal")
    mallory.leave()
    mallory.connect()
    assert mallory.deliver(mallory.answer(task)) == ""


BAD: dict[str, tuple[str, Callable[[Mallory, Parcel], None]]] = {
    "a reply that does not parse": (
        "malformed",
        rejected(lambda m, task: m.answer(task, b"\xff\xff"), "malformed"),
    ),
    "an old round's answer as a new one": ("malformed", rejected(other_task, "malformed")),
    "an answer of another round": (
        "wrong-round",
        rejected(lambda m, task: m.answer(task, round=task.round + 7), "unexpected"),
    ),
    "a blob too large for the run": (
        "oversize",
        rejected(lambda m, task: m.with_content(task, bytes(4 * SIZE)), "oversize"),
    ),
    "a blob of 2^62 bytes": ("malformed", garbage),
    "a broken frame": ("protocol", broken),
    "a bomb": ("screened", reply(lambda: coded(bomb()))),
    "a bomb that says nothing": ("screened", reply(lambda: coded(silent_bomb()))),
    "a bomb that lies": ("screened", reply(lambda: coded(lying_bomb()))),
    "2^31 coded elements": ("screened", reply(lambda: coded(bomb(), (2**31,)))),
    "2^31 elements": ("screened", reply(lambda: shaped(2**31, nbytes=2**33))),
    "2^31 x 2^31 elements": ("screened", reply(lambda: shaped(2**31, 2**31, nbytes=2**63))),
    "no records": ("screened", reply(lambda: bytes(1000))),
    "cut records": ("screened", reply(lambda: plain(np.zeros(FLOATS, "f4"))[: SIZE // 2])),
    "NaN": ("screened", reply(lambda: plain(np.full(FLOATS, np.nan, "f4")))),
    "another shape": ("screened", reply(lambda: plain(np.zeros(FLOATS - 1, "f4")))),
}
"""What is answered in each round, and the reason under which it is counted."""


@row(15, "bad input of an enrolled device", full=20)
def bad_input(tally: Tally, world: World) -> None:
    """Answer each round in another bad way; all are refused and named, nobody else is touched."""
    options = {"codec": "lossless", "reply_bytes": 3 * SIZE}
    clean = world.clean(len(BAD), **options) if tally.full else None
    with Mallory(world) as mallory:
        world.wait_here(mallory.name)
        while tally.trials < tally.count:
            trip = world.begin(rounds=len(BAD), beside=1, **options)
            expected = _answer_badly(mallory, trip)
            trip.end()
            tally.trials += 1
            tally.judge(trip, clean, everybody=False, bytes_limit=0.0)
            _named(tally, trip, mallory.name, expected)
            mallory.tasks.clear()
    tally.notes.append(f"{len(BAD)} kinds in each")


def _answer_badly(mallory: Mallory, trip: Trip) -> Counter[str]:
    """Answer each round in its way, and say what nobody asked; return what must be counted."""
    expected: Counter[str] = Counter()
    boat = trip.world.boats[0].name
    for place, (reason, act) in enumerate(BAD.values()):
        task = mallory.task(place + 1)
        if place == 0:  # whose task is it?
            for _ in range(3):
                stranger = replace(
                    mallory.answer(task), id=ParcelId(trip.task_of(boat, 1) + "/reply")
                )
                assert mallory.deliver(stranger) == "unexpected"
                mallory.leave()
                mallory.connect()
            assert (
                mallory.deliver(replace(stranger, id=ParcelId("task-of-nobody/reply")))
                == "unexpected"
            )
            expected["not-asked"] += 4
        act(mallory, task)
        expected[reason] += 1
    # What an old round was answered with, again, and changed: in a session that never heard it.
    taken = next(one for one in mallory.tasks if one.round == len(BAD))
    last = mallory.with_content(taken, plain(np.zeros(FLOATS - 1, "f4")))
    mallory.leave()
    mallory.connect()
    assert mallory.deliver(last) == ""
    changed = work_pb2.Reply(task=taken.id, content=b"x").SerializeToString()
    mallory.leave()
    mallory.connect()
    assert mallory.deliver(mallory.answer(taken, changed)) == "unexpected"
    expected["repeated"] += 1
    expected["changed"] += 1
    return expected


def _named(tally: Tally, trip: Trip, device: str, expected: Counter[str]) -> None:
    """Hold what is counted, and what `runs show` prints, against what was sent."""
    rows = trip.detail()["unwanted"]
    counted = {one["reason"]: one["times"] for one in rows if one["device"] == device}
    tally.require(counted == expected, f"{trip.id}: counted {counted}, sent {dict(expected)}")
    others = [one for one in rows if one["device"] != device and one["reason"] != "repeated"]
    tally.require(not others, f"{trip.id}: {others} is said of honest devices")
    shown = show(trip)
    for reason in expected:
        tally.require(
            any(line.startswith(device) and f" {reason} " in line for line in shown.splitlines()),
            f"{trip.id}: runs show does not name {reason} of {device}",
        )


def show(trip: Trip) -> str:
    """Return what `skerry runs show` prints."""
    context = trip.world.context()
    done = subprocess.run(
        [sys.executable, "-m", "skerry_devices", "runs", "show", trip.id],
        env={**os.environ, "SKERRY_CONFIG": str(context), "COLUMNS": "300"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
