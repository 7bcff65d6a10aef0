"""Predictions over MQTT, through a real mosquitto."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import aiomqtt
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from skerry_edge.energy import Budget
from skerry_edge.inference.service import Inference

from tests.edge.inference.test_service import Joules, asked, config, slot
from tests.mqtt import mosquitto_present, mosquitto_program

pytestmark = [
    pytest.mark.network,
    pytest.mark.broker,
    pytest.mark.skipif(not mosquitto_present(), reason="no mosquitto: MQTT 5 is needed"),
]


@contextlib.asynccontextmanager
async def broker(folder: Path) -> AsyncIterator[int]:
    """Run a plain mosquitto on a free port of loopback."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    (folder / "mosquitto.conf").write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    process = await asyncio.create_subprocess_exec(
        mosquitto_program(), "-c", str(folder / "mosquitto.conf"), stderr=asyncio.subprocess.DEVNULL
    )
    try:
        yield port
    finally:
        process.terminate()
        await process.wait()


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[aiomqtt.Client]:
    """Connect once the broker listens."""
    for left in reversed(range(50)):
        try:
            async with aiomqtt.Client(
                "127.0.0.1", port, protocol=aiomqtt.ProtocolVersion.V5
            ) as client:
                yield client
                return
        except aiomqtt.MqttError:
            if not left:
                raise
            await asyncio.sleep(0.1)


async def test_a_request_is_answered_where_it_says(tmp_path: Path) -> None:
    async with broker(tmp_path) as port, connected(port) as client:
        settings = config(tmp_path, mqtt=f"mqtt://127.0.0.1:{port}")
        budget = Budget(Joules(), tmp_path / "energy.json")
        async with Inference(settings, "dev-1", budget) as inference:
            await inference.swap("tiny", slot(tmp_path / "s", 4))
            await client.subscribe("mine/#", qos=1)
            said = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            said.ResponseTopic, said.CorrelationData = "mine/answers", b"42"
            found: dict[bytes, dict[str, object]] = {}
            async with asyncio.timeout(30):
                # Its subscription may come after ours asks: a request is small, ask again.
                while b"42" not in found:
                    for model in ("other", "tiny"):
                        await client.publish(
                            f"skerry/v1/infer/dev-1/{model}",
                            json.dumps(asked()),
                            qos=1,
                            properties=said,
                        )
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(1):
                            async for message in client.messages:
                                assert isinstance(message.payload, bytes)
                                made = json.loads(message.payload)
                                data = getattr(message.properties, "CorrelationData", b"")
                                assert message.topic.value == "mine/answers"
                                if "error" in made:
                                    assert "no model 'other' is served here" in made["error"]
                                    continue
                                found[data] = made
                                break
            assert found[b"42"]["model_version"] == "4"
