"""Bugs planted on purpose: a simulator that does not find them would be worth nothing.

Each is what somebody might well write, and switched on only by the tests (or --bug NAME).
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from skerry_cloud.runs import Runs, replies
from skerry_cloud.runs.asker import Answer, Asker
from skerry_cloud.strategies import mean
from skerry_edge import outbox
from skerry_edge.agent import Agent
from skerry_edge.outbox import Ledger, file_name
from skerry_protos import blobs
from skerry_protos.blobs import LocalBlobs
from skerry_protos.errors import SkerryError
from skerry_protos.messages import DeviceId, Parcel


def _acknowledged_first() -> list[tuple[Any, str, Any]]:
    """A reply is acknowledged before it is stored: the device forgets what is not here yet."""
    store = Runs.reply

    async def reply(runs: Runs, device: DeviceId, parcel: Parcel) -> None:
        async def later() -> None:
            with contextlib.suppress(SkerryError):
                await store(runs, device, parcel)

        runs._spawn(later())

    return [(Runs, "reply", reply)]


def _forgotten_at_restart() -> list[tuple[Any, str, Any]]:
    """An agent that starts again takes up its tasks, and not the replies it had ready."""
    go_on = Agent._go_on

    async def without_replies(agent: Agent) -> None:
        offer = agent._offer
        agent._offer = lambda reply: None  # type: ignore[method-assign]
        await go_on(agent)
        agent._offer = offer  # type: ignore[method-assign]

    return [(Agent, "_go_on", without_replies)]


def _folded_as_they_come() -> list[tuple[Any, str, Any]]:
    """Replies are summed in the order in which they arrive, which no restart repeats."""
    in_order = replies.in_order

    def as_they_come(*what: Any, **how: Any) -> Iterator[Answer]:
        yield from sorted(in_order(*what, **how), key=lambda answer: answer.at)

    return [(mean, "in_order", as_they_come)]


def _counted_again() -> list[tuple[Any, str, Any]]:
    """A server side that begins again folds a reply in twice: as journalled, and as heard."""
    in_order = replies.in_order

    def again(asker: Asker, *what: Any, **how: Any) -> Iterator[Answer]:
        begun_before = asker.checkpoint() is not None
        for answer in in_order(asker, *what, **how):
            yield answer
            if begun_before:
                yield answer

    return [(mean, "in_order", again)]


def _blobs_not_synced() -> list[tuple[Any, str, Any]]:
    """A blob gets its name before its bytes are on the disk."""

    def name(store: LocalBlobs, path: Path, file: int, digest: str) -> None:
        folder = store.root / digest[:2]
        folder.mkdir(exist_ok=True)
        os.fchmod(file, 0o444)
        path.rename(folder / digest)
        blobs._sync_folder(folder)

    return [(LocalBlobs, "_name", name)]


def _outbox_not_synced() -> list[tuple[Any, str, Any]]:
    """Replies are put into the outbox by a rename alone."""

    def write(path: Path, content: bytes) -> None:
        beside = path.with_suffix(".new")
        beside.write_bytes(content)
        beside.replace(path)

    return [(outbox, "write_durably", write)]


def _cancelled_too_late() -> list[tuple[Any, str, Any]]:
    """A reply that a thread is storing while its task is cancelled stays in the outbox for ever.

    The agent once had this one; the simulator found it.
    """

    def answer(ledger: Ledger, task: Parcel, reply: Parcel, *_states: Any) -> bool:
        with ledger._lock:
            ledger.outbox.put(reply)
            ledger.inbox.remove(task.id)
            return True

    return [(Ledger, "answer", answer)]


def _done_is_not_kept() -> list[tuple[Any, str, Any]]:
    """A reply leaves the outbox when it is sent, and not when it is acknowledged."""
    deliver = Agent._deliver

    async def forgetful(agent: Agent, reply: Parcel) -> None:
        (agent._config.home / "outbox" / f"{file_name(reply.id)}.parcel").unlink(missing_ok=True)
        await deliver(agent, reply)

    return [(Agent, "_deliver", forgetful)]


BUGS = {
    "acknowledged-first": _acknowledged_first,
    "forgotten-at-restart": _forgotten_at_restart,
    "folded-as-they-come": _folded_as_they_come,
    "counted-again": _counted_again,
    "blobs-not-synced": _blobs_not_synced,
    "outbox-not-synced": _outbox_not_synced,
    "cancelled-too-late": _cancelled_too_late,
    "sent-is-not-stored": _done_is_not_kept,
}


@contextlib.contextmanager
def planted(bug: str) -> Iterator[None]:
    """Have this bug in the product while the block runs; "" plants none."""
    changes = BUGS[bug]() if bug else []
    before = [(place, name, getattr(place, name)) for place, name, _ in changes]
    for place, name, value in changes:
        setattr(place, name, value)
    try:
        yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)
