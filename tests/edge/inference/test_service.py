"""The inference process under the agent's care: serves, swaps, comes back, spares energy."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from skerry_edge.config import AgentConfig
from skerry_edge.energy import Budget
from skerry_edge.inference.service import Inference
from skerry_edge.inference.settings import InferenceTable
from skerry_edge.models.slots import Release, Slot
from skerry_protos.errors import SkerryError
from skerry_protos.messages import Digest
from skerry_protos.records import Records, decode, encode
from skerry_protos.tensors import Tensor

from tests.artefacts import FEATURES, weights, write_artefact

pytestmark = pytest.mark.network

ROW = [[float(at % 3) for at in range(FEATURES)]]


class Joules:
    """A meter that says what it is told."""

    source = "estimated"

    def __init__(self) -> None:
        self.total = 0.0

    def joules(self) -> float:
        self.total += 0.001
        return self.total


def slot(folder: Path, version: int = 1, **options: Any) -> Slot:
    write_artefact(folder / "content", **options)
    release = Release(
        model="tiny",
        version=version,
        target=f"stable/tiny/{version}/x.zip",
        digest=Digest(f"{version:064x}"),
        size=1,
    )
    return Slot(name="a", folder=folder, release=release)


def config(home: Path, **changes: Any) -> AgentConfig:
    return AgentConfig(home=home, inference=InferenceTable(port=0, **changes))


@pytest.fixture
async def inference(tmp_path: Path) -> AsyncIterator[Inference]:
    budget = Budget(Joules(), tmp_path / "energy.json")
    async with Inference(config(tmp_path), "dev-1", budget) as made:
        yield made


def client(inference: Inference, **options: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{inference.port}", timeout=20, **options)


def asked(data: Any = ROW) -> dict[str, Any]:
    shape = list(np.shape(data))
    return {"inputs": [{"name": "x", "shape": shape, "datatype": "FP32", "data": data}]}


async def until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110 - what is waited for is in another process
            await asyncio.sleep(0.05)


async def test_serves_by_the_protocol(inference: Inference, tmp_path: Path) -> None:
    await inference.swap("tiny", slot(tmp_path / "s", 3))
    async with client(inference) as http:
        assert (await http.get("/v2/health/ready")).json() == {"ready": True}
        about = (await http.get("/v2/models/tiny")).json()
        assert about["versions"] == ["3"]
        assert about["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, FEATURES]}]
        found = await http.post("/v2/models/tiny/versions/3/infer", json=asked())
        outputs = {one["name"]: one["data"] for one in found.json()["outputs"]}
        expected = np.array(ROW, np.float32) @ weights()
        np.testing.assert_allclose(outputs["scores"], expected[0], rtol=1e-4, atol=1e-4)
        assert outputs["label"] == ["abcd"[expected.argmax()]]
        text = (await http.get("/metrics")).text
        assert (
            'skerry_inference_requests_total{model="tiny",outcome="answered",version="3"} 1.0'
            in text
        )


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "why"),
    [
        ("POST", "/v2/models/other/infer", b"{}", 404, "there are ['tiny']"),
        ("POST", "/v2/models/tiny/versions/9/infer", b"{}", 404, "version 1 is"),
        ("POST", "/v2/models/tiny/infer", b"{}", 400, "inputs must be a list"),
        ("POST", "/v2/models/tiny/infer", b"x" * (2**20 + 1), 413, "at most 1048576 go"),
        ("GET", "/v2/models/tiny/infer", b"", 405, "use POST"),
        ("GET", "/nowhere", b"", 404, "there is nothing at /nowhere"),
    ],
)
async def test_refusals_are_one_line(
    tmp_path: Path, method: str, path: str, content: bytes, status: int, why: str
) -> None:
    budget = Budget(Joules(), tmp_path / "energy.json")
    async with Inference(config(tmp_path, request_mb=1), "dev-1", budget) as inference:
        await inference.swap("tiny", slot(tmp_path / "s"))
        async with client(inference) as http:
            found = await http.request(method, path, content=content)
            assert found.status_code == status
            assert why in found.json()["error"]
            good = await http.post("/v2/models/tiny/infer", json=asked())
            assert good.status_code == 200


async def test_a_token_is_asked_for(tmp_path: Path) -> None:
    budget = Budget(Joules(), tmp_path / "energy.json")
    async with Inference(config(tmp_path, token="s3cret"), "dev-1", budget) as inference:
        await inference.swap("tiny", slot(tmp_path / "s"))
        async with client(inference) as http:
            assert (await http.get("/v2/models/tiny")).status_code == 401
            assert (await http.get("/v2/health/live")).status_code == 200
            http.headers["authorization"] = "Bearer s3cret"
            assert (await http.get("/v2/models/tiny")).status_code == 200


async def test_swaps_under_load_drop_nothing(inference: Inference, tmp_path: Path) -> None:
    slots = [slot(tmp_path / str(version), version, bias=version) for version in (1, 2)]
    await inference.swap("tiny", slots[0])
    seen: set[str] = set()
    over, answered = asyncio.Event(), asyncio.Semaphore(0)

    async def ask() -> None:
        async with client(inference) as http:
            while not over.is_set():
                found = await http.post("/v2/models/tiny/infer", json=asked())
                assert found.status_code == 200, found.text
                said = found.json()
                first = float((np.array(ROW, np.float32) @ weights())[0, 0])
                version = float(said["model_version"])
                assert said["outputs"][0]["data"][0] == pytest.approx(first + version, abs=1e-3)
                seen.add(said["model_version"])
                answered.release()

    asking = [asyncio.create_task(ask()) for _ in range(4)]
    for number in range(100):
        await inference.swap("tiny", slots[(number + 1) % 2])
        async with asyncio.timeout(20):
            for _ in asking:
                await answered.acquire()
    over.set()
    await asyncio.gather(*asking)
    assert seen == {"1", "2"}


async def test_a_model_that_cannot_be_served_leaves_the_one_that_is(
    inference: Inference, tmp_path: Path
) -> None:
    await inference.swap("tiny", slot(tmp_path / "good", 1))
    with pytest.raises(SkerryError, match=r"cannot load model.onnx"):
        await inference.swap("tiny", slot(tmp_path / "bad", 2, broken="file"))
    async with client(inference) as http:
        found = await http.post("/v2/models/tiny/infer", json=asked())
        assert found.json()["model_version"] == "1"


async def test_a_process_that_dies_comes_back_with_its_models(
    inference: Inference, tmp_path: Path
) -> None:
    await inference.swap("tiny", slot(tmp_path / "s", 5))
    before = [each.pid for each in psutil.Process().children()]
    for pid in before:
        if "skerry_edge.inference.child" in psutil.Process(pid).cmdline():
            os.kill(pid, signal.SIGKILL)
    await until(lambda: (inference.readings("tiny") or {})["crashes"] == 1)
    await inference._until_ready()
    async with client(inference) as http:
        found = await http.post("/v2/models/tiny/infer", json=asked())
        assert found.json()["model_version"] == "5"


async def test_readings_for_the_gates(inference: Inference, tmp_path: Path) -> None:
    await inference.swap("tiny", slot(tmp_path / "s", reference=True))
    rng = np.random.default_rng(0)
    async with client(inference) as http:
        for _ in range(5):
            rows = rng.normal(4, 1, (64, FEATURES)).tolist()
            assert (await http.post("/v2/models/tiny/infer", json=asked(rows))).status_code == 200
            await asyncio.sleep(0.12)  # inputs are looked at ten times a second at most
        bad = await http.post("/v2/models/tiny/infer", json={})
        assert bad.status_code == 400
        await until(lambda: (inference.readings("tiny") or {}).get("requests") == 5)
    found = inference.readings("tiny") or {}
    assert found["error_rate"] == 0  # a bad request is not the model's fault
    assert found["latency_p95_s"] > 0 and found["memory_bytes"] > 1e6
    assert found["energy_j"] >= 0
    assert found["drift"] > 1  # every input is four standard deviations off


async def test_the_days_energy_throttles_and_then_refuses(tmp_path: Path) -> None:
    meter = Joules()
    budget = Budget(meter, tmp_path / "energy.json", daily_j=1000)
    async with Inference(config(tmp_path), "dev-1", budget) as inference:
        await inference.swap("tiny", slot(tmp_path / "s"))
        async with client(inference) as http:
            assert (await http.post("/v2/models/tiny/infer", json=asked())).status_code == 200
            meter.total = 1001
            async with asyncio.timeout(20):
                while True:
                    found = await http.post("/v2/models/tiny/infer", json=asked())
                    if found.status_code != 200:
                        break
            assert found.status_code == 503
            assert "of 1000 J used (estimated), new at" in found.json()["error"]


async def test_unsure_inputs_go_to_the_cloud_and_back_home_without_it(tmp_path: Path) -> None:
    up = True

    traces: list[str] = []

    async def ask_cloud(model: str, body: bytes, _wait_s: float, traceparent: str) -> bytes:
        traces.append(traceparent)
        if not up:
            raise SkerryError("no network")
        assert model == "tiny"
        rows = decode(body).arrays["tensors"]["x"].numpy()
        made = {"class": np.full(len(rows), 3, dtype=np.int64)}
        tensors = {name: Tensor.of(values) for name, values in made.items()}
        return b"".join(bytes(part) for part in encode(Records(arrays={"tensors": tensors})))

    budget = Budget(Joules(), tmp_path / "energy.json")
    made = Inference(config(tmp_path), "dev-1", budget, ask_cloud=ask_cloud)
    async with made as inference:
        await inference.swap("tiny", slot(tmp_path / "s", unsure_below=0.99))
        sure, unsure = [20.0 * value for value in ROW[0]], [0.0] * FEATURES
        async with client(inference) as http:
            found = (await http.post("/v2/models/tiny/infer", json=asked([sure, unsure]))).json()
            classes = next(one for one in found["outputs"] if one["name"] == "class")["data"]
            own = int((np.array([sure], np.float32) @ weights()).argmax())
            assert classes == [own, 3]
            assert found["parameters"]["answered_by"] == "cloud"
            assert found["parameters"]["rows_by_cloud"] == 1
            assert traces == [""]
            caller = f"00-{'1' * 32}-{'2' * 16}-01"
            headers = {"traceparent": caller}
            await http.post("/v2/models/tiny/infer", json=asked([unsure]), headers=headers)
            assert traces == ["", caller]
            local = {**asked([unsure]), "parameters": {"answer": "local"}}
            found = (await http.post("/v2/models/tiny/infer", json=local)).json()
            assert found["parameters"]["answered_by"] == "device"
            up = False
            found = (await http.post("/v2/models/tiny/infer", json=asked([unsure]))).json()
            assert found["parameters"]["answered_by"] == "device"


async def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    budget = Budget(Joules(), tmp_path / "energy.json")
    async with Inference(config(tmp_path), "dev-1", budget) as first:
        await first.swap("tiny", slot(tmp_path / "s"))
        taken = replace(config(tmp_path), inference=InferenceTable(port=first.port))
        async with Inference(taken, "dev-1", budget) as second:
            swapping = asyncio.create_task(second.swap("tiny", slot(tmp_path / "t")))
            await until(lambda: "cannot listen on" in second.why)
            assert "Address already in use" in second.why
            swapping.cancel()
            await asyncio.wait({swapping})
