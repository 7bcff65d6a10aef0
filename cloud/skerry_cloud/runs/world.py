"""What every run works with, and what they all may say."""

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import sqlalchemy as sa
from skerry_protos.blobs import LocalBlobs
from skerry_protos.bundles import Manifest
from skerry_protos.errors import LinkError, SkerryError
from skerry_protos.failpoints import failpoint
from skerry_protos.messages import BlobRef, DeviceId

from skerry_cloud.fleets import Fleet
from skerry_cloud.selectors import Selector
from skerry_cloud.store import Store
from skerry_cloud.store import blobs as kept_blobs
from skerry_cloud.store.devices import Device

T = TypeVar("T")

NAMED = 8
"""Most devices named in one sentence."""


class Roster(Protocol):
    """Who is enrolled and who is here (skerry_cloud.registry.Registry)."""

    def connected(self) -> frozenset[DeviceId]: ...

    async def devices(self, selector: Selector | None = None) -> list[Device]: ...

    async def available(
        self, selector: Selector | None = None, capabilities: Iterable[str] = ()
    ) -> list[Device]: ...

    async def wait_change(self, timeout_s: float) -> None: ...


class Apps(Protocol):
    """Who has apps signed (skerry_cloud.models.apps.SignedApps)."""

    async def add(self, manifest: Manifest) -> None: ...

    async def prepare(self) -> None: ...

    def metadata(self) -> BlobRef | None: ...


class News:
    """Wakes those who wait for something to be journalled."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def tell(self) -> None:
        """Wake everyone who waits now."""
        told, self._event = self._event, asyncio.Event()
        told.set()

    def next(self) -> asyncio.Event:
        """Return what the next news sets; take it before you look, then nothing is missed."""
        return self._event

    async def wait(self, news: asyncio.Event, timeout_s: float) -> None:
        """Return at the news, or after the timeout."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await news.wait()


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The coordinator as a run sees it."""

    store: Store
    blobs: LocalBlobs
    fleet: Fleet
    roster: Roster
    folder: Path  # one subfolder per run
    hidden: Callable[[], list[Path]]  # what a server side must not see
    news: News
    apps: Apps | None = None  # who signs apps, where there is anybody

    async def write(self, function: Callable[[sa.Connection], T]) -> T:
        """Write to the database, and tell those who wait for news."""
        value = await self.store.write(function)
        self.news.tell()
        return value

    async def adopt(self, path: Path, role: str) -> BlobRef:
        """Make a file a blob; a second name of it stays, so that it can be adopted again.

        Two runs may have the same blob, and one may let go of it before the other has said in the
        database that it is needed: `require` finds that out, in the transaction that says so.
        """
        return await asyncio.to_thread(self._adopt, path, role)

    def _adopt(self, path: Path, role: str) -> BlobRef:
        spare = path.with_suffix(".spare")
        if spare.exists():
            path.unlink(missing_ok=True)
            os.link(spare, path)
        else:
            os.link(path, spare)
        return self.blobs.adopt(path, role=role)

    def adopted(self, path: Path) -> None:
        """Forget the second name of a file that has been adopted for good."""
        path.with_suffix(".spare").unlink(missing_ok=True)

    def require(self, ref: BlobRef) -> None:
        """Raise GoneError if the blob is not here; only in the database's writer, as `sweep`."""
        if self.blobs.path(ref.digest) is None:
            raise GoneError(f"another run let go of blob {ref.digest[:12]}: take it again")

    async def sweep(self) -> None:
        """Remove the blobs that nobody needs any more.

        Files are removed in the database's writer, which does one thing at a time: one that is
        needed again is not marked any more, or its taker finds that it is gone (`require`).
        """

        def write(connection: sa.Connection) -> int:
            digests = kept_blobs.gone(connection)
            for digest in digests:
                with contextlib.suppress(SkerryError):
                    self.blobs.remove(digest)
                failpoint("checkpoint.removing")
            kept_blobs.forget(connection, digests)
            return len(digests)

        while await self.store.write(write):
            pass


class GoneError(LinkError):
    """A blob was let go of in the moment it was taken: take it again."""


class BrokenRunError(SkerryError):
    """The run cannot go on; the message is what a person reads."""

    code = "run"
    exit_code = 8


class DamagedError(BrokenRunError):
    """What the run needs to go on is damaged or gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """What a run waits for now."""

    what: str
    why: str
    until: float = 0.0
    on: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Return it as the API shows it."""
        return {"what": self.what, "why": self.why, "until_unix_s": self.until, "on": list(self.on)}


def naming(devices: Iterable[str]) -> str:
    """Return device names as part of a sentence, not too many."""
    names = list(devices)
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if names[NAMED:] else "")
