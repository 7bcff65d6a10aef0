"""Which way across: gRPC first, MQTT when gRPC does not get through, and refusals."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from skerry_edge.identity import LinkAddress
from skerry_edge.links import Link, LinkConfig
from skerry_edge.routes import Route, ways
from skerry_protos.blobs import LocalBlobs
from skerry_protos.errors import ConfigError, LinkError, RefusalCode, RefusedError
from skerry_protos.messages import BlobRef, DeviceId, Parcel, ParcelId
from skerry_protos.seams import Stream

from tests.edge.conftest import until

GRPC = LinkAddress(kind="grpc", url="grpcs://here:1")
MQTT = LinkAddress(kind="mqtt", url="mqtts://here:2")


class Shore:
    """Links that connect when their kind is reachable."""

    def __init__(self, *reachable: str) -> None:
        self.reachable = set(reachable)
        self.opened: list[str] = []
        self.delivered: list[tuple[str, str]] = []
        self.refusal: RefusedError | None = None
        self.configs: dict[str, LinkConfig] = {}

    @asynccontextmanager
    async def open(self, config: LinkConfig) -> AsyncIterator[Link]:
        self.opened.append(config.kind)
        self.configs[config.kind] = config
        if config.kind == "absent":
            raise ImportError("No module named 'aiomqtt'")
        if self.refusal is not None:
            config.on_refused(self.refusal)
        elif config.kind in self.reachable:
            config.on_state(None, 0.0)
        else:
            config.on_state("connection refused", 2.0)
        yield FakeLink(self, config)


class FakeLink:
    """Delivers while its kind is reachable."""

    def __init__(self, shore: Shore, config: LinkConfig) -> None:
        self._shore, self._config = shore, config

    @property
    def connected(self) -> bool:
        return self._config.kind in self._shore.reachable

    async def deliver(self, parcel: Parcel) -> None:
        if not self.connected:
            raise LinkError("cut")
        self._shore.delivered.append((self._config.kind, parcel.id))

    async def fetch(self, ref: BlobRef, *, deadline_s: float) -> Path:
        raise LinkError("cut")

    async def open_stream(
        self, kind: str, *, deadline_s: float, run: str = "", trace: str = ""
    ) -> Stream:
        raise LinkError("cut")


@pytest.fixture
def make_route(tmp_path: Path) -> Callable[..., Route]:
    def make(shore: Shore, *addresses: LinkAddress) -> Route:
        def config(address: LinkAddress) -> LinkConfig:
            return LinkConfig(
                kind=address.kind,
                url=address.url,
                device=DeviceId("d"),
                agent_version="1",
                blobs=LocalBlobs(tmp_path / "blobs"),
                receiver=None,  # type: ignore[arg-type]
                on_state=route.state,
                on_refused=route.refused,
            )

        route = Route(addresses, config, failover_s=0.2, opener=shore.open)
        return route

    return make


@asynccontextmanager
async def running(route: Route) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(route.run())
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, RefusedError, ConfigError):
            await task


def parcel(name: str) -> Parcel:
    return Parcel(id=ParcelId(name), kind="log")


def test_auto_is_grpc_first_and_a_kind_is_that_kind_alone() -> None:
    assert ways([MQTT, GRPC], "auto") == (GRPC, MQTT)
    assert ways([MQTT, GRPC], "mqtt") == (MQTT,)
    with pytest.raises(ConfigError, match="offers no 'mqtt' link; it offers grpc"):
        ways([GRPC], "mqtt")


async def test_grpc_is_used_while_it_gets_through(make_route: Callable[..., Route]) -> None:
    shore = Shore("grpc", "mqtt")
    route = make_route(shore, GRPC, MQTT)
    async with running(route):
        await route.deliver(parcel("p"))
        assert shore.delivered == [("grpc", "p")]
        assert (route.connected, shore.opened) == (True, ["grpc"])


async def test_it_falls_over_to_mqtt_and_what_was_being_delivered_goes_on(
    make_route: Callable[..., Route],
) -> None:
    shore = Shore("mqtt")
    route = make_route(shore, GRPC, MQTT)
    async with running(route):
        await asyncio.wait_for(route.deliver(parcel("p")), 5)
        assert shore.delivered == [("mqtt", "p")]
        assert shore.opened == ["grpc", "mqtt"]
        shore.reachable = {"grpc"}  # now the broker goes, and gRPC is back
        shore.configs["mqtt"].on_state("the broker went", 1.0)
        await asyncio.wait_for(route.deliver(parcel("q")), 5)
        assert shore.delivered[-1] == ("grpc", "q")


async def test_alone_a_link_is_never_given_up(make_route: Callable[..., Route]) -> None:
    shore = Shore()
    route = make_route(shore, GRPC)
    async with running(route):
        await asyncio.sleep(0.6)  # three times its patience
        assert (shore.opened, route.why) == (["grpc"], "connection refused; next attempt in 2 s")


async def test_a_link_that_is_not_installed_is_passed_over(
    make_route: Callable[..., Route],
) -> None:
    shore = Shore("mqtt")
    absent = LinkAddress(kind="absent", url="x://")
    route = make_route(shore, absent, MQTT)
    async with running(route):
        await asyncio.wait_for(route.deliver(parcel("p")), 5)
    with pytest.raises(ConfigError, match="aiomqtt"):
        await make_route(shore, absent).run()


async def test_a_refusal_for_good_ends_it(make_route: Callable[..., Route]) -> None:
    shore = Shore()
    shore.refusal = RefusedError(RefusalCode.REVOKED, "gone")
    with pytest.raises(RefusedError, match="gone"):
        await asyncio.wait_for(make_route(shore, GRPC, MQTT).run(), 5)


async def test_a_refusal_that_may_pass_is_waited_for(
    make_route: Callable[..., Route], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        __import__("skerry_edge.routes", fromlist=["x"]).REFUSED_WAIT_S, RefusalCode.VERSION, 0.1
    )
    shore = Shore("grpc")
    shore.refusal = RefusedError(RefusalCode.VERSION, "upgrade the coordinator")
    route = make_route(shore, GRPC)
    async with running(route):
        await until(lambda: len(shore.opened) > 1)
        assert "upgrade the coordinator" in route.why or route.connected
        shore.refusal = None
        await asyncio.wait_for(route.deliver(parcel("p")), 5)
