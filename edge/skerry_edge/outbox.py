"""What must survive a power cut: tasks taken, replies not yet acknowledged, tasks done.

A task is a file in `inbox/` before it is acknowledged, a reply a file in `outbox/` until the cloud
has it, and an id in `done` afterwards, so that a repeated task is recognised. The reply's file is
the commit: what comes before it is done again after a crash, what comes after it is completed.
"""

import hashlib
import os
import threading
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path

from google.protobuf.message import DecodeError
from skerry_protos.errors import SkerryError
from skerry_protos.messages import Digest, Parcel, ParcelId
from skerry_protos.session.frames import parcel_message, read_parcel
from skerry_protos.v1 import fleet_pb2

from skerry_edge.states import NBYTES, States

REMEMBERED = 4096
"""Ids of done tasks kept, at least."""
HELD_LIMIT = 256
"""Tasks held at once; more are refused until some are done."""
REPLY = "/reply"


class Seen(Enum):
    """What is known of a task that arrives."""

    NEW = "new"
    HELD = "held"  # noted or being worked on
    ANSWERED = "answered"  # its reply waits in the outbox
    DONE = "done"  # its reply was acknowledged, or it was dropped


def file_name(name: str) -> str:
    """Return a file name for an id, whatever characters the id has."""
    return hashlib.sha256(name.encode()).hexdigest()[:40]


def reply_id(task: str) -> ParcelId:
    """Return the id of the parcel that answers a task."""
    return ParcelId(task + REPLY)


class ParcelFolder:
    """Parcels as files, each written in one step that survives a power cut."""

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True)
        self._parcels: dict[str, Parcel] = {}
        for path in sorted(root.glob("*.parcel"), key=lambda each: each.stat().st_mtime_ns):
            try:
                parcel = read_parcel(fleet_pb2.Parcel.FromString(path.read_bytes()))
            except (DecodeError, SkerryError):
                path.rename(path.with_suffix(".damaged"))
                continue
            self._parcels[parcel.id] = parcel
        for path in root.glob("*.new"):
            path.unlink()

    def __contains__(self, name: str) -> bool:
        return name in self._parcels

    def __len__(self) -> int:
        return len(self._parcels)

    def get(self, name: str) -> Parcel | None:
        """Return the parcel with this id, or None."""
        return self._parcels.get(name)

    def __iter__(self) -> Iterator[Parcel]:
        """Yield the parcels, oldest first."""
        return iter(list(self._parcels.values()))

    def put(self, parcel: Parcel) -> None:
        """Keep a parcel; it is on the disk when this returns."""
        path = self._path(parcel.id)
        write_durably(path, parcel_message(parcel).SerializeToString())
        self._parcels[parcel.id] = parcel

    def remove(self, name: str) -> None:
        """Forget a parcel."""
        self._path(name).unlink(missing_ok=True)
        self._parcels.pop(name, None)

    def _path(self, name: str) -> Path:
        return self._root / f"{file_name(name)}.parcel"


class Done:
    """The newest ids of tasks that are over, in a file that is appended to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        self._ids = dict.fromkeys(lines[-REMEMBERED:])

    def __contains__(self, name: str) -> bool:
        return name in self._ids

    def add(self, name: str) -> None:
        """Remember an id; it is on the disk when this returns."""
        if name in self._ids:
            return
        self._ids[name] = None
        if len(self._ids) > 2 * REMEMBERED:
            self._ids = dict.fromkeys(list(self._ids)[-REMEMBERED:])
            write_durably(self._path, "".join(f"{each}\n" for each in self._ids).encode())
            return
        with self._path.open("a") as file:
            file.write(f"{name}\n")
            file.flush()
            os.fsync(file.fileno())


class Ledger:
    """The tasks and replies of one device; methods wait for the disk and belong in a thread."""

    def __init__(self, home: Path, *, states_limit: int = NBYTES) -> None:
        """Keep everything in `home`; what runs keep takes at most `states_limit` bytes."""
        self.inbox = ParcelFolder(home / "inbox")
        self.outbox = ParcelFolder(home / "outbox")
        self.states = States(home / "state", states_limit)
        self._done = Done(home / "done")
        self._lock = threading.Lock()
        self._recover()

    def _recover(self) -> None:
        """Complete what a crash interrupted: the reply's file decides."""
        for task in list(self.inbox):
            if reply_id(task.id) in self.outbox or task.id in self._done:
                self.inbox.remove(task.id)
        answered = {parcel.id.removesuffix(REPLY) for parcel in self.outbox}
        self.states.recover({file_name(task) for task in answered})

    def seen(self, task: str) -> Seen:
        """Return what is known of a task."""
        if task in self.inbox:
            return Seen.HELD
        if reply_id(task) in self.outbox:
            return Seen.ANSWERED
        return Seen.DONE if task in self._done else Seen.NEW

    def take(self, parcel: Parcel) -> Seen:
        """Note a task unless it is known; return what was known.

        One that is held may come again with more time, from a coordinator that was away.
        """
        with self._lock:
            found, held = self.seen(parcel.id), self.inbox.get(parcel.id)
            if found is Seen.NEW or (held and held.deadline_unix_s != parcel.deadline_unix_s):
                self.inbox.put(parcel)
            return found

    def answer(self, task: Parcel, reply: Parcel, states: Mapping[str, Path]) -> bool:
        """Exchange a task for its reply and keep the run's next states, all or nothing.

        Return False, with nothing kept, for a task that was closed while it was worked on.
        """
        with self._lock:
            if task.id not in self.inbox:
                return False
            self.states.prepare(task.run, file_name(task.id), states)
            self.outbox.put(reply)  # the commit
            self.states.apply(task.run, file_name(task.id))
            self.inbox.remove(task.id)
            return True

    def close(self, task: str) -> None:
        """Forget a task and its reply, and remember that it is over."""
        with self._lock:
            self._done.add(task)
            self.inbox.remove(task)
            self.outbox.remove(reply_id(task))

    def forget(self, run: str) -> None:
        """Remove what is kept between a run's tasks: it is over."""
        with self._lock:
            self.states.forget(run)

    def wanted(self) -> set[Digest]:
        """Return the blobs that tasks and replies refer to."""
        parcels = [*self.inbox, *self.outbox]
        return {ref.digest for parcel in parcels for ref in parcel.blobs}


def write_durably(path: Path, content: bytes) -> None:
    """Put a file in place in one step that survives a power cut."""
    beside = path.with_suffix(".new")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the folder's names survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
