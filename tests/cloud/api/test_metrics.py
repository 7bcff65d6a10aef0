"""The coordinator's figures, as Prometheus reads them."""

import asyncio
import ssl
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from skerry_cloud.store.operators import Role
from skerry_edge.enrolment import join
from skerry_protos.messages import DeviceId, Parcel, ParcelId, ParcelKind
from skerry_protos.v1.work_pb2 import Heartbeat

from tests.mainland import Mainland, mainland

pytestmark = pytest.mark.network


async def scraped(shore: Mainland) -> dict[tuple[str, str], float]:
    """Return samples by name and first label."""

    def get() -> str:
        context = ssl.create_default_context(cafile=str(shore.authority.certificate_file))
        request = urllib.request.Request(
            f"{shore.url}/metrics", headers={"Authorization": f"Bearer {shore.tokens[Role.VIEWER]}"}
        )
        with urllib.request.urlopen(request, timeout=20, context=context) as answer:
            return str(answer.read().decode())

    text = await asyncio.to_thread(get)
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_figures_follow_the_fleet(tmp_path: Path) -> None:
    async with mainland(tmp_path / "coordinator") as shore:
        assert (await scraped(shore))["skerry_up", ""] == 1
        word = await shore.invite(uses=2)
        for name in ("a", "b"):
            await asyncio.to_thread(join, word, tmp_path / name, name)
        body = Heartbeat(energy_today_j=250.5, energy_source="rapl").SerializeToString()
        bad = Heartbeat(energy_today_j=-1e30, energy_source="rapl").SerializeToString()
        for device, said in (("a", body), ("b", bad)):
            parcel = Parcel(id=ParcelId(f"h-{device}"), kind=ParcelKind.HEARTBEAT, body=said)
            await shore.registry.accept(DeviceId(device), parcel)
        found = await scraped(shore)
        assert found["skerry_devices", "offline"] == 2
        assert found["skerry_devices_energy_today_joules", "rapl"] == 250.5
        assert found["skerry_coordinator_process_resident_memory_bytes", ""] > 1e6
