"""What goes over the wire: answers in one piece, lasting connections, chunks, pipelines, limits."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from skerry_edge.inference.child import listen
from skerry_edge.inference.desk import Desk
from skerry_edge.inference.http import http_server
from skerry_edge.inference.predictor import Predictor
from skerry_edge.inference.server import Endpoint
from skerry_edge.inference.settings import InferenceTable

from tests.artefacts import CLASSES, FEATURES, weights, write_artefact

pytestmark = pytest.mark.network

INFER = "POST /v2/models/tiny/infer HTTP/1.1\r\nHost: x\r\n"
ROWS = np.arange(2 * FEATURES, dtype=np.float32).reshape(2, FEATURES) % 5


@asynccontextmanager
async def serving(
    folder: Path, *, parallel: int = 2, request_bytes: int = 2**20
) -> AsyncIterator[int]:
    write_artefact(folder)
    listening = listen("127.0.0.1", 0)
    listening.listen(16)  # who connects before the server is up waits
    async with Desk(InferenceTable(port=0)) as desk:
        await desk.serve(Predictor.load(folder, name="tiny"), parallel=parallel)
        server = http_server(Endpoint(desk, token="", request_bytes=request_bytes), queue=64)
        running = asyncio.create_task(server.serve(sockets=[listening]))
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            await running


async def answered(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """Read one answer: its status, headers and body."""
    async with asyncio.timeout(10):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.strip().split("\r\n")
        headers = {k.lower(): v.strip() for k, v in (line.split(":", 1) for line in lines)}
        body = await reader.readexactly(int(headers["content-length"]))
    return int(first.split()[1]), headers, body


def asked(row: list[float]) -> bytes:
    one = {"name": "x", "shape": [1, FEATURES], "datatype": "FP32", "data": row}
    return json.dumps({"inputs": [one]}).encode()


def sized(body: bytes) -> bytes:
    return f"{INFER}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def test_an_answer_comes_in_one_piece_and_the_connection_stays(tmp_path: Path) -> None:
    async with serving(tmp_path / "m") as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(3):
            writer.write(sized(asked(ROWS[0].tolist())))
            async with asyncio.timeout(10):
                piece = await reader.read(1 << 16)  # what one write of the server's sent
            head, _, body = piece.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            scores = json.loads(body)["outputs"][0]["data"]
            np.testing.assert_allclose(scores, ROWS[0] @ weights(), rtol=1e-4, atol=1e-4)
        writer.close()


async def test_pipelined_requests_are_answered_in_their_order(tmp_path: Path) -> None:
    async with serving(tmp_path / "m") as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        rows = [[float(at)] * FEATURES for at in range(20)]
        writer.write(b"".join(sized(asked(row)) for row in rows))
        for row in rows:
            status, _, body = await answered(reader)
            scores = json.loads(body)["outputs"][0]["data"]
            assert status == 200
            np.testing.assert_allclose(scores, row @ weights(), rtol=1e-4, atol=1e-3)
        writer.close()


async def test_chunks_and_a_connection_that_shall_close(tmp_path: Path) -> None:
    async with serving(tmp_path / "m") as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = asked(ROWS[1].tolist())
        writer.write(f"{INFER}Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n".encode())
        for at in range(0, len(body), 50):
            part = body[at : at + 50]
            writer.write(b"%x\r\n" % len(part) + part + b"\r\n")
        writer.write(b"0\r\n\r\n")
        assert (await answered(reader))[0] == 200
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        writer.close()


async def test_who_asks_first_is_told_to_go_on(tmp_path: Path) -> None:
    async with serving(tmp_path / "m") as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = asked(ROWS[1].tolist())
        head = f"{INFER}Expect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode())
        async with asyncio.timeout(10):
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert (await answered(reader))[0] == 200
        writer.close()


async def test_chunks_without_end_are_refused_at_the_limit(tmp_path: Path) -> None:
    async with serving(tmp_path / "m", request_bytes=10_000) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"{INFER}Transfer-Encoding: chunked\r\n\r\n".encode())
        for _ in range(11):
            writer.write(b"3e8\r\n" + b"1" * 1000 + b"\r\n")
        status, _, body = await answered(reader)
        assert status == 413 and b"more than 10000 bytes" in body
        writer.close()


async def test_who_brings_no_whole_request_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skerry_protos.patience.Impatient.head_s", 0.5)
    monkeypatch.setattr("skerry_edge.inference.server.BODY_S", 0.5)

    async def hang(port: int, said: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(said)
        try:
            async with asyncio.timeout(15):
                return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()

    async with serving(tmp_path / "m") as port:
        half_a_body = f"{INFER}Content-Length: 100\r\n\r\n{{".encode()
        hanging = [
            asyncio.create_task(hang(port, said))
            for said in [b"", INFER.encode(), half_a_body] * 10
        ]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sized(asked(ROWS[0].tolist())))
        assert (await answered(reader))[0] == 200
        writer.close()
        answers = await asyncio.gather(*hanging)
    assert answers.count(b"") == 20
    assert sum(each.startswith(b"HTTP/1.1 408") for each in answers) == 10


async def test_binary_tensors_go_both_ways(tmp_path: Path) -> None:
    async with serving(tmp_path / "m") as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        one = {
            "name": "x",
            "shape": [2, FEATURES],
            "datatype": "FP32",
            "parameters": {"binary_data_size": ROWS.nbytes},
        }
        wanted = {"name": "scores", "parameters": {"binary_data": True}}
        text = json.dumps({"inputs": [one], "outputs": [wanted]}).encode()
        body = text + ROWS.tobytes()
        writer.write(
            f"{INFER}Inference-Header-Content-Length: {len(text)}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        status, headers, found = await answered(reader)
        assert status == 200 and headers["content-type"] == "application/octet-stream"
        scores = np.frombuffer(found[int(headers["inference-header-content-length"]) :], "<f4")
        np.testing.assert_allclose(
            scores.reshape(2, CLASSES), ROWS @ weights(), rtol=1e-4, atol=1e-4
        )
        writer.close()


async def test_many_at_once_get_each_their_own(tmp_path: Path) -> None:
    async def ask(port: int, number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for turn in range(20):
            row = [float((number * 31 + turn) % 17)] * FEATURES
            writer.write(sized(asked(row)))
            status, _, body = await answered(reader)
            assert status == 200
            scores = json.loads(body)["outputs"][0]["data"]
            np.testing.assert_allclose(scores, row @ weights(), rtol=1e-4, atol=1e-3)
        writer.close()

    async with serving(tmp_path / "m", parallel=4) as port:
        await asyncio.gather(*(ask(port, number) for number in range(16)))
