"""What the agent's inference endpoint costs: requests a second beside the bare runtime's.

A convolutional net of about 1 ms at batch 1 is called directly (one thread, no server: the limit of
what any server can give without batching), through the agent's inference process, and through a
plain FastAPI + onnxruntime server as a tutorial would write it. The same requests (Open Inference
Protocol, JSON) are sent over 8 connections by the same client, which shares the machine's cores.

The agent is measured with one thread for the model, its default, beside the bare runtime with one;
and with one thread per core beside the plain server, whose runtime takes every core by default.
"""

import asyncio
import itertools
import json
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
import psutil
from onnx import TensorProto, helper, numpy_helper
from skerry_edge.config import AgentConfig
from skerry_edge.energy import Budget, find_meter
from skerry_edge.inference.service import Inference
from skerry_edge.inference.settings import InferenceTable
from skerry_edge.models.slots import Release, Slot
from skerry_protos.manifest import Golden, Manifest, Port, Postprocessing
from skerry_protos.messages import Digest
from skerry_protos.packing import file_digest

from benchmarks._measure import QUICK, finish, stopped_after, wait_until

SECONDS = 4 if QUICK else 15
REPEATS = 2 if QUICK else 5
CONNECTIONS = 8
SIDE, CLASSES = 28, 10
CHANNELS = (1, 16, 32, 32)
TARGET_S = 1e-3


def write_model(folder: Path, width: int) -> Path:
    """Write a small conv net's artefact; `width` multiplies its channels."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    nodes, constants, last = [], [], "x"
    channels = [CHANNELS[0], *(width * each for each in CHANNELS[1:])]
    for at, (into, out) in enumerate(itertools.pairwise(channels)):
        kernel = (rng.normal(0, 1, (out, into, 3, 3)) / (3 * into**0.5)).astype(np.float32)
        constants.append(numpy_helper.from_array(kernel, f"k{at}"))
        stride = 1 if at == 0 else 2
        nodes.append(
            helper.make_node(
                "Conv", [last, f"k{at}"], [f"c{at}"], pads=[1] * 4, strides=[stride] * 2
            )
        )
        nodes.append(helper.make_node("Relu", [f"c{at}"], [f"r{at}"]))
        last = f"r{at}"
    head = rng.normal(0, 0.1, (channels[-1], CLASSES)).astype(np.float32)
    constants.append(numpy_helper.from_array(head, "head"))
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"]))
    nodes.append(helper.make_node("MatMul", ["flat", "head"], ["scores"]))
    shape = ["batch", 1, SIDE, SIDE]
    graph = helper.make_graph(
        nodes,
        "convs",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", CLASSES])],
        constants,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (folder / "model.onnx").write_bytes(made.SerializeToString())
    images = rng.normal(0, 1, (8, 1, SIDE, SIDE)).astype(np.float32)
    scores = session(folder).run(None, {"x": images})[0]
    np.savez(folder / "golden.npz", **{"input.x": images, "output.scores": scores})
    manifest = Manifest(
        model="convs",
        runtime="onnx",
        file="model.onnx",
        quantization="none",
        recipe="float",
        opset=20,
        inputs=(Port(name="x", dtype="float32", shape=(None, 1, SIDE, SIDE)),),
        outputs=(Port(name="scores", dtype="float32", shape=(None, CLASSES)),),
        golden=Golden(examples=8),
        files={name: file_digest(folder / name) for name in ("model.onnx", "golden.npz")},
        postprocessing=(Postprocessing(output="scores", kind="classes"),),
    )
    (folder / "manifest.json").write_bytes(manifest.to_bytes())
    return folder


def session(folder: Path) -> onnxruntime.InferenceSession:
    """Return the model as the agent loads it: one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(
        str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )


def bare(folder: Path) -> float:
    """Return calls a second of the runtime itself at batch 1."""
    model = session(folder)
    image = np.random.default_rng(1).normal(0, 1, (1, 1, SIDE, SIDE)).astype(np.float32)
    for _ in range(20):
        model.run(None, {"x": image})
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < SECONDS / 2:
        model.run(None, {"x": image})
        count += 1
    return count / (time.perf_counter() - began)


def near_a_millisecond(folder: Path) -> Path:
    """Return the net whose bare time is nearest to the target on this machine."""
    tries = [write_model(folder / str(width), width) for width in (1, 2, 3, 4, 6)]
    return min(tries, key=lambda each: abs(1 / bare(each) - TARGET_S))


def load(port: int, path: str, connections: int) -> tuple[float, float, float]:
    """Send requests for a while; return requests a second, p50 and p99 seconds."""
    image = np.random.default_rng(1).normal(0, 1, SIDE * SIDE).round(4).tolist()
    one = {"name": "x", "shape": [1, 1, SIDE, SIDE], "datatype": "FP32", "data": image}
    body = json.dumps({"inputs": [one]}).encode()
    request = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    selector = selectors.DefaultSelector()
    sent: dict[socket.socket, float] = {}
    for _ in range(connections):
        each = socket.create_connection(("127.0.0.1", port))
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        selector.register(each, selectors.EVENT_READ)
        sent[each] = time.perf_counter()
        each.sendall(request)
    times: list[float] = []
    began = time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        for key, _ in selector.select(timeout=5):
            each = key.fileobj
            assert isinstance(each, socket.socket)
            answer = each.recv(1 << 16)
            if not answer.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"the server answered {answer[:300]!r}")
            while b"\r\n\r\n" not in answer or not _whole(answer):
                answer += each.recv(1 << 16)
            now = time.perf_counter()
            times.append(now - sent[each])
            sent[each] = now
            each.sendall(request)
    seconds = time.perf_counter() - began
    for each in sent:
        each.close()
    p50, p99 = np.quantile(times, (0.5, 0.99))
    return len(times) / seconds, float(p50), float(p99)


def _whole(answer: bytes) -> bool:
    head, _, body = answer.partition(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1])
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"content-length")
    )
    return len(body) >= length


def ours(folder: Path, home: Path, threads: int) -> dict[int, tuple[float, float, float]]:
    """Measure the agent's inference process; 0 threads: one per core."""

    async def measure() -> dict[int, tuple[float, float, float]]:
        config = AgentConfig(home=home, inference=InferenceTable(port=0, threads=threads))
        budget = Budget(find_meter(idle_w=2, busy_w=6), home / "energy.json")
        release = Release(
            model="convs", version=1, target="stable/convs/1/x", digest=Digest("0" * 64), size=1
        )
        content = home / "slot"
        content.mkdir()
        (content / "content").symlink_to(folder)
        async with Inference(config, "bench", budget) as inference:
            await inference.swap("convs", Slot(name="a", folder=content, release=release))
            return {
                connections: await asyncio.to_thread(
                    load, inference.port, "/v2/models/convs/infer", connections
                )
                for connections in (1, CONNECTIONS)
            }

    return asyncio.run(measure())


def plain(folder: Path) -> dict[int, tuple[float, float, float]]:
    """Measure a plain FastAPI + onnxruntime server."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = psutil.Popen(
        [
            sys.executable,
            *("-m", "uvicorn", "benchmarks.apps.plain_server:app", "--port", str(port)),
            *("--log-level", "warning"),
        ],
        env={"MODEL": str(folder / "model.onnx"), "PATH": "/usr/bin:/bin"},
        stdout=subprocess.DEVNULL,
    )
    with stopped_after(process):
        wait_until(lambda: _listens(port), "the plain server", 30)
        return {
            connections: load(port, "/v2/models/convs/infer", connections)
            for connections in (1, CONNECTIONS)
        }


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def main() -> None:
    """Measure all three in turn, several times; medians of the ratios."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = near_a_millisecond(Path(temporary) / "models")
        rounds = []
        for turn in range(REPEATS):
            home = Path(temporary) / f"home{turn}"
            for name in ("one", "every"):
                (home / name).mkdir(parents=True)
            limit, mine = bare(folder), ours(folder, home / "one", 1)
            wide, theirs = ours(folder, home / "every", 0), plain(folder)
            every = (("agent", mine), ("agent, every core", wide), ("plain", theirs))
            for name, found in every:
                for connections, (rate, p50, p99) in found.items():
                    print(
                        f"{name}, {connections} connections: {rate:7.0f} requests/s, p50 "
                        f"{p50 * 1e3:6.2f} ms, p99 {p99 * 1e3:6.2f} ms; bare {limit:6.0f}/s "
                        f"({1e3 / limit:.2f} ms a call)",
                        flush=True,
                    )
            rounds.append((limit, mine, wide, theirs))
    busy = CONNECTIONS
    finish(
        {
            "vs_bare_runtime": median(mine[busy][0] / limit for limit, mine, _, _ in rounds),
            "vs_plain_server": median(
                wide[busy][0] / theirs[busy][0] for _, _, wide, theirs in rounds
            ),
            "vs_plain_server_1": median(wide[1][0] / theirs[1][0] for _, _, wide, theirs in rounds),
            "one_thread_vs_plain_server": median(
                mine[busy][0] / theirs[busy][0] for _, mine, _, theirs in rounds
            ),
            "bare_per_s": median(limit for limit, *_ in rounds),
            "p50_ms": 1e3 * median(mine[busy][1] for _, mine, _, _ in rounds),
            "p99_ms": 1e3 * median(mine[busy][2] for _, mine, _, _ in rounds),
            "plain_p99_ms": 1e3 * median(theirs[busy][2] for *_, theirs in rounds),
        }
    )


def median(values: object) -> float:
    """Return the median, to four digits."""
    return float(f"{np.median(list(values)):.4g}")  # type: ignore[call-overload]


if __name__ == "__main__":
    main()
