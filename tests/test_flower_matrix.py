"""Everything of Flower over our fleets: each strategy comes to what Flower comes to by itself.

FLOWER.md 2.5's matrix: the strategies, mods, differential privacy, the older API, queries and
SecAgg+, on every transport, with real agents and workers. The reference is Flower's own code on a
Grid that calls the ClientApp in this process.
"""

import json
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Context, Message, Metadata, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity
from skerry_cloud.store.runs import Run

from tests.fleet import TRANSPORTS, SmallFleet, small_fleet

MATRIX = Path(__file__).parent / "apps" / "matrix"
LEGACY = Path(__file__).parent / "apps" / "legacy"
DEVICES = ("a", "b", "c", "d", "e")
NODES = range(100, 105)


class HereGrid(Grid):  # type: ignore[misc]
    """Flower's Grid without a network: the ClientApp is called where the server side runs."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._contexts = {
            node: Context(
                run_id=1,
                node_id=node,
                node_config={"partition-id": place, "num-partitions": len(DEVICES)},
                state=RecordDict(),
                run_config={},
            )
            for place, node in enumerate(NODES)
        }

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        return SimpleNamespace(run_id=1)

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(NODES)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return [self._answer(message) for message in messages]

    def _answer(self, message: Message) -> Message:
        meta = message.metadata
        copy = Metadata(
            run_id=1,
            message_id="m",
            src_node_id=1,
            dst_node_id=meta.dst_node_id,
            reply_to_message_id="",
            group_id="",
            created_at=meta.created_at,
            ttl=meta.ttl,
            message_type=meta.message_type,
        )
        content = RecordDict(dict(message.content.items()))
        return self._app(Message(content=content, metadata=copy), self._contexts[meta.dst_node_id])


@pytest.fixture(scope="module")
def reference() -> Iterator[dict[str, Any]]:
    """Return what each case comes to without us."""
    sys.path.insert(0, str(MATRIX))
    identity = vars(TaskIdentity).copy()
    try:
        cases = import_module("matrix.cases").CASES
        app = import_module("matrix.client").app
        run_case = import_module("matrix.server").run_case
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        yield {name: run_case(HereGrid(app), name, 2) for name in cases}
    finally:
        sys.path.remove(str(MATRIX))
        for name in ("_run_id", "_node_id", "_task_id"):
            setattr(TaskIdentity, name, identity[name])


@pytest.fixture(params=TRANSPORTS)
async def fleet(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SmallFleet]:
    async with small_fleet(tmp_path, request.param, DEVICES) as made:
        yield made


def results(fleet: SmallFleet, run: Run) -> Any:
    """Return what the app's server side wrote."""
    return json.loads((fleet.home / "runs" / run.id / "files" / "results.json").read_text())


def close(value: Any) -> Any:
    """Return `value` so that it equals what differs by rounding only."""
    if isinstance(value, dict):
        return {key: close(one) for key, one in value.items()}
    if isinstance(value, list):
        return [close(one) for one in value]
    return pytest.approx(value, rel=1e-4, abs=1e-5)


@pytest.mark.network
@pytest.mark.xdist_group("the matrix and what it is compared with")
@pytest.mark.timeout(300)
async def test_flower_over_a_fleet(fleet: SmallFleet, reference: dict[str, Any]) -> None:
    cases = [*reference, "FedXgbBagging", "FedXgbCyclic", "query"]
    run = await fleet.train(MATRIX, run_config={"cases": " ".join(cases)})
    found = results(fleet, run)
    for name, expected in reference.items():
        # A device's state lives as long as the run, the reference's as long as the case.
        for values in (*found[name]["train"].values(), *expected["train"].values()):
            values.pop("calls", None)
        assert found[name] == close(expected), name
    assert found["FedAvg"]["arrays"][0][0][0] == pytest.approx(11.25)  # 3/4 of 225 / 15
    bagged = found["FedXgbBagging"]["learner"]["gradient_booster"]["model"]
    assert len(bagged["trees"]) == 10  # one of each device, two rounds
    cyclic = found["FedXgbCyclic"]["learner"]["gradient_booster"]["model"]
    assert len(cyclic["trees"]) == 1
    assert_query(found["query"])
    assert not await fleet.events(run, "failure", "late", "refused")
    metrics = await fleet.metrics(run)
    calls = [
        v for (_, phase, device, name), v in metrics.items() if (device, name) == ("a", "calls")
    ]
    assert max(calls) == 2 * len(reference), "Context.state stays on the device for the whole run"


def assert_query(found: dict[str, Any]) -> None:
    assert found["nodes"] == found["pulled"] == list(NODES)
    assert found["iterable_twice"]
    assert found["in_reply_to"]
    assert found["stranger"] == [[5, "no device of this run has the node id 12345"]]
    assert found["answers"]["101"] == {
        "text": "hello!",
        "bytes": "0100ff",
        "flag": False,
        "texts": ["a", "b"],
        "floats": [1.5, -0.0],
        "empty": [],
        "partition": 1,
        "nested": 1,
    }


@pytest.mark.network
@pytest.mark.timeout(200)
async def test_flowers_older_api_and_secure_aggregation(fleet: SmallFleet) -> None:
    plain = await fleet.train(LEGACY)
    assert results(fleet, plain)["fit"] == [[[1.0] * 3], [[2.0] * 3]]
    metrics = await fleet.metrics(plain)
    assert metrics[2, "train", "", "seen"] == 2.0
    assert metrics[2, "evaluate", "", "loss"] == 2.0
    model = fleet.model(plain).arrays["arrays"]["0"].numpy()
    assert model.tolist() == [2.0] * 3
    secure = await fleet.train(LEGACY, run_config={"secure": True})
    found = results(fleet, secure)
    assert found["fit"] == [
        [pytest.approx([1.0] * 3, abs=0.01)],
        [pytest.approx([2.0] * 3, abs=0.01)],
    ]
