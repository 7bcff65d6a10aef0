"""One run is one trace, from the coordinator to the device and back, also over a restart."""

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from skerry_cloud.rollouts.lifecycle import RolloutState
from skerry_protos import tracing

from tests.cloud.rollouts.conftest import QUICK, ended
from tests.fleet import small_fleet
from tests.signed import add_version, begin_repository

HALVES = Path(__file__).parents[2] / "apps" / "halves"


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    made = InMemorySpanExporter()
    assert tracing.begin("test", exporter=made)
    yield made
    tracing.end()


def told(exporter: InMemorySpanExporter, name: str) -> bool:
    return any(one.name == name for one in exporter.get_finished_spans())


def of(spans: Sequence[ReadableSpan], name: str) -> list[ReadableSpan]:
    """Return the spans of one trace by name; each but the root has a parent among them."""
    return [
        one
        for one in spans
        if one.context is not None and f"{one.context.trace_id:032x}" == tracing.trace_id(name)
    ]


def tree(spans: Sequence[ReadableSpan]) -> set[tuple[str, str]]:
    """Return (parent's name, name) of each span; every parent must be there."""
    names = {one.context.span_id: one.name for one in spans if one.context is not None}
    assert len(names) == len(spans)  # no id twice
    return {(names[one.parent.span_id] if one.parent else "", one.name) for one in spans}


async def test_a_run_is_one_trace_to_the_devices_and_back(
    tmp_path: Path, exporter: InMemorySpanExporter
) -> None:
    async with small_fleet(tmp_path, "memory", ["one", "two"]) as fleet:
        run = await fleet.train(HALVES, rounds=2)
    tracing.end()
    spans = of(exporter.get_finished_spans(), run.id)
    assert tree(spans) >= {
        ("", "run"),
        ("run", "question train"),
        ("run", "aggregate"),
        ("question train", "task"),
        ("task", "deliver"),
        ("task", "work"),
        ("task", "intake"),
        ("work", "run"),
        ("work", "reply"),
    }
    (root,) = [one for one in spans if not one.parent]
    assert root.attributes is not None
    assert root.attributes["skerry.state"] == "completed"
    works = [one for one in spans if one.name == "work"]
    tasks = [one for one in spans if one.name == "task"]
    assert len(works) == len(tasks) >= 4
    for one in spans:
        assert one.start_time is not None
        assert one.end_time is not None
        assert root.start_time is not None
        assert root.start_time <= one.start_time <= one.end_time


async def test_a_rollout_is_one_trace_with_what_each_device_did(
    tmp_path: Path, exporter: InMemorySpanExporter
) -> None:
    async with small_fleet(tmp_path, devices=["one", "two"]) as fleet:
        signer = await begin_repository(tmp_path / "keys", fleet.models.repository)
        version = await add_version(fleet.models, tmp_path / "made", b"v1")
        await signer.sign(version, "canary")
        rollout = await fleet.rollouts.begin(
            model="digits@1", channel="canary", plan=QUICK, by="test"
        )
        assert (await ended(fleet, rollout)).state is RolloutState.COMPLETED
        async with asyncio.timeout(10):
            while not told(exporter, "rollout"):  # noqa: ASYNC110 - a thread tells it
                await asyncio.sleep(0.05)
    tracing.end()
    spans = of(exporter.get_finished_spans(), rollout.id)
    assert tree(spans) == {
        ("", "rollout"),
        ("rollout", "release"),
        ("release", "fetch"),
        ("release", "self-test"),
    }
    assert len([one for one in spans if one.name == "release"]) == 2
