"""A link to a coordinator in the same process, by name: memory://NAME."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from skerry_protos.session import Limits
from skerry_protos.session.memory import MemoryEnd, connect

from skerry_edge.links import LinkConfig
from skerry_edge.links.crossing import Connection, Crossing


class MemoryLink(Crossing):
    """A Link over skerry_protos.session.memory."""

    def __init__(
        self, config: LinkConfig, *, limits: Limits | None = None, ping_s: float = 10.0
    ) -> None:
        self._name = urlsplit(config.url).netloc
        super().__init__(config, self._connect, limits=limits, ping_s=ping_s)

    @asynccontextmanager
    async def _connect(self) -> AsyncIterator[Connection]:
        end = connect(self._name)
        self.dialled(end)
        try:
            yield end
        finally:
            end.close()

    def dialled(self, end: MemoryEnd) -> None:
        """Note a new wire; simulations override it to cut or silence the wire later."""
