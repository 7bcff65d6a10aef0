"""Which zygote a fresh worker is forked from: one for each set of libraries, few at a time.

The kind of app says what is loaded first; what a bundle's workers turn out to load besides (torch)
is warm from its next task on.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from skerry_protos.errors import SkerryError
from skerry_protos.messages import Digest

from skerry_edge.worker.messages import LIBRARIES
from skerry_edge.worker.zygotes import Zygote

log = logging.getLogger(__name__)

ZYGOTES = 2
"""Zygotes kept; each holds what its libraries take, 50 to 250 MB."""
BUNDLES = 64
"""Bundles whose libraries are remembered."""


class Warmth:
    """The zygotes of one pool."""

    def __init__(self, start: Callable[[str], Awaitable[Zygote]]) -> None:
        self._start = start
        self._zygotes: dict[str, Zygote] = {}
        self._unfit: set[str] = set()
        self._libraries: dict[Digest, str] = {}
        self._starting = asyncio.Lock()

    def note(self, bundle: Digest, libraries: str) -> None:
        """Note what a bundle's worker had loaded, as far as it may be loaded early."""
        known = sorted(set(libraries.split(",")) & LIBRARIES.keys())
        if known:
            self._libraries.pop(bundle, None)
            self._libraries[bundle] = ",".join(known)
        while len(self._libraries) > BUNDLES:
            del self._libraries[next(iter(self._libraries))]

    async def find(self, bundle: Digest, kind: str) -> Zygote | None:
        """Return the zygote for a bundle of this kind of app, or None where there can be none."""
        libraries = self._libraries.get(bundle, kind)
        if kind not in LIBRARIES or libraries in self._unfit:
            return None
        async with self._starting:
            zygote = self._zygotes.get(libraries)
            if zygote is not None and zygote.usable:
                return zygote
            await self._make_room(libraries)
            try:
                self._zygotes[libraries] = await self._start(libraries)
            except (SkerryError, OSError) as error:
                log.info("fresh workers are started as processes of their own: %s", error)
                self._unfit.add(libraries)
                return None
            return self._zygotes[libraries]

    async def _make_room(self, libraries: str) -> None:
        """Stop the zygote that this one takes the place of, and the oldest beyond the limit."""
        over = [libraries] if libraries in self._zygotes else []
        idle = [name for name, each in self._zygotes.items() if not each.busy]
        over += [name for name in idle if name != libraries][: len(self._zygotes) + 1 - ZYGOTES]
        for name in over:
            await self._zygotes.pop(name).stop()

    async def cool(self, keep_s: float) -> None:
        """Stop the zygotes that nobody has used for so long and whose workers are gone."""
        for name, zygote in list(self._zygotes.items()):
            unused = not zygote.busy and time.monotonic() - zygote.used_s >= keep_s
            if unused or not keep_s or not zygote.usable:
                del self._zygotes[name]
                await zygote.stop()
