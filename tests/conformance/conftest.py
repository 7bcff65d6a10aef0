"""One suite, every transport: `harness` is parametrised by all that have registered."""

import importlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from tests.conformance.harness import TRANSPORTS, Harness, open_harness

for module in ("shores", "brokers"):
    """Modules that register transports; a broker that is not on this machine registers nothing."""
    if importlib.util.find_spec(f"tests.conformance.{module}"):
        importlib.import_module(f"tests.conformance.{module}")


@pytest.fixture(params=sorted(TRANSPORTS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def harness(kind: str, tmp_path: Path) -> AsyncIterator[Harness]:
    async with open_harness(kind, tmp_path) as harness:
        yield harness


@pytest.fixture
def opened(kind: str, tmp_path: Path) -> Callable[[float], AbstractAsyncContextManager[Harness]]:
    """Return what opens a harness with other seconds between pings."""
    return lambda ping_s: open_harness(kind, tmp_path, ping_s=ping_s)
