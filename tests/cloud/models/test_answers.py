"""The cloud's bigger model answers a device, over every link; what is no question is refused."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from skerry_cloud.models.answers import Answers
from skerry_protos import tracing
from skerry_protos.errors import RejectedError, SkerryError
from skerry_protos.records import Records, decode, encode
from skerry_protos.tensors import Tensor

from tests.artefacts import FEATURES, packed, weights
from tests.fleet import SmallFleet, small_fleet, until

pytestmark = pytest.mark.network
WAIT_S = 20.0


def question(rows: int, features: int = FEATURES) -> tuple[bytes, np.ndarray]:
    values = np.random.default_rng(3).normal(0, 1, (rows, features)).astype(np.float32)
    tensors = {"x": Tensor.of(values)}
    return b"".join(bytes(part) for part in encode(Records(arrays={"tensors": tensors}))), values


@pytest.fixture(params=["memory", "grpc", "mqtt"])
async def fleet(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[SmallFleet]:
    async with (
        small_fleet(tmp_path, request.param, ["d1"]) as made,
        Answers(made.models, made.blobs, tmp_path / "answers") as answers,
    ):
        made.registry._streams = {answers.kind: answers.serve}
        file = packed(tmp_path / "big", seed=5)
        version = await made.models.add("tiny", {"big.zip": file}, lineage={}, by="test")
        await made.models.label(f"tiny@{version.version}", "cloud", "test")
        yield made


async def test_raw_inputs_are_answered(fleet: SmallFleet) -> None:
    agent = fleet.running["d1"]
    # More than one part of a stream's message.
    for rows in (1, 1000):
        body, values = question(rows)
        answer = decode(await agent.ask_cloud("tiny", body, WAIT_S)).arrays["tensors"]
        expected = values @ weights(5)
        np.testing.assert_allclose(answer["scores"].numpy(), expected, rtol=1e-3, atol=1e-4)
        assert (answer["class"].numpy() == expected.argmax(axis=1)).all()


async def test_what_cannot_be_answered_says_why(fleet: SmallFleet) -> None:
    agent = fleet.running["d1"]
    body, _ = question(2)
    with pytest.raises(SkerryError, match="no model 'other'"):
        await agent.ask_cloud("other", body, WAIT_S)
    with pytest.raises(SkerryError, match="has shape"):
        await agent.ask_cloud("tiny", question(2, 3)[0], WAIT_S)
    with pytest.raises(SkerryError):
        await agent.ask_cloud("tiny", b"nonsense", WAIT_S)
    with pytest.raises(RejectedError, match="cannot be read"):
        stream = await agent._route.open_stream("infer", deadline_s=WAIT_S)
        async with stream:
            await stream.send(json.dumps(["tiny"]).encode())
            await stream.finish()
            await stream.receive()
    answer = await agent.ask_cloud("tiny", body, WAIT_S)  # none of it harmed the child
    assert decode(answer).arrays["tensors"]["class"].shape == (2,)


async def test_a_question_and_its_answer_are_one_trace(fleet: SmallFleet) -> None:
    exporter = InMemorySpanExporter()
    tracing.begin("test", exporter=exporter)
    try:
        await fleet.running["d1"].ask_cloud("tiny", question(1)[0], WAIT_S)
    finally:
        tracing.end()
    spans = {one.name: one for one in exporter.get_finished_spans()}
    asked, answered = spans["infer in the cloud"], spans["answer"]
    assert answered.context is not None
    assert asked.context is not None
    assert answered.parent is not None
    assert answered.context.trace_id == asked.context.trace_id
    assert answered.parent.span_id == asked.context.span_id
    assert asked.parent is None


async def test_a_question_goes_on_in_the_trace_of_who_asked_the_device(fleet: SmallFleet) -> None:
    agent = fleet.running["d1"]
    exporter = InMemorySpanExporter()
    tracing.begin("test", exporter=exporter)
    try:
        body, _ = question(1)
        for flags in ("01", "00"):  # "00": who asked does not record this trace
            caller = f"00-{'a' * 30}{flags}-{'b' * 16}-{flags}"
            await agent.ask_cloud("tiny", body, WAIT_S, caller)
        await agent.ask_cloud("tiny", body, WAIT_S, "nonsense")
    finally:
        tracing.end()
    spans = [one for one in exporter.get_finished_spans() if one.name == "infer in the cloud"]
    asked, alone = spans
    assert asked.context is not None and asked.parent is not None and alone.context is not None
    assert f"{asked.context.trace_id:032x}" == "a" * 30 + "01"
    assert f"{asked.parent.span_id:016x}" == "b" * 16
    assert alone.parent is None and alone.context.trace_id != asked.context.trace_id
    answers = [one for one in exporter.get_finished_spans() if one.name == "answer"]
    assert asked.context.span_id in {one.parent.span_id for one in answers if one.parent}


async def test_a_child_that_died_is_begun_again(fleet: SmallFleet) -> None:
    agent = fleet.running["d1"]
    body, _ = question(1)
    await agent.ask_cloud("tiny", body, WAIT_S)
    serve = fleet.registry._streams["infer"]
    answers = serve.__self__  # type: ignore[attr-defined]
    answers._process.kill()
    await answers._process.wait()
    await until(answers._reading.done)
    await agent.ask_cloud("tiny", body, WAIT_S)
