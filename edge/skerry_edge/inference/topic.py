"""Predictions over MQTT: requests on a topic, answers on the topic the request names.

A request is a message on `skerry/v1/infer/DEVICE/MODEL` whose payload is what would be POSTed; the
answer goes to its response topic with its correlation data (MQTT 5, 4.10), or without a response
topic to `…/MODEL/answer`. A user property `traceparent` names the trace that it belongs to.
"""

import asyncio
import logging
import ssl
from urllib.parse import urlsplit

import aiomqtt
import orjson
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from skerry_protos.errors import SkerryError

from skerry_edge.inference.desk import Desk
from skerry_edge.inference.settings import InferenceTable

log = logging.getLogger(__name__)

TOPIC = "skerry/v1/infer"
RETRY_S = 5.0
AT_ONCE = 32
"""Requests worked on at once; the rest waits at the broker."""


async def answer_topic(desk: Desk, settings: InferenceTable, device: str) -> None:
    """Answer requests at the broker that the settings name, until cancelled."""
    url = urlsplit(settings.mqtt)
    tls = ssl.create_default_context() if url.scheme == "mqtts" else None
    while True:
        try:
            async with aiomqtt.Client(
                url.hostname or "127.0.0.1",
                port=url.port or (8883 if tls else 1883),
                username=url.username,
                password=url.password,
                tls_context=tls,
                protocol=aiomqtt.ProtocolVersion.V5,
                identifier=f"skerry-infer-{device}",
                max_queued_incoming_messages=settings.queue,
            ) as client:
                await client.subscribe(f"{TOPIC}/{device}/+", qos=1)
                await _serve(client, desk, settings.request_mb * 2**20)
        except (aiomqtt.MqttError, OSError) as error:
            log.warning("predictions over %s: %s; again in %g s", settings.mqtt, error, RETRY_S)
        await asyncio.sleep(RETRY_S)


async def _serve(client: aiomqtt.Client, desk: Desk, limit: int) -> None:
    room = asyncio.Semaphore(AT_ONCE)
    async with asyncio.TaskGroup() as group:
        async for message in client.messages:
            await room.acquire()
            task = group.create_task(_answer(client, desk, message, limit))
            task.add_done_callback(lambda _: room.release())


async def _answer(client: aiomqtt.Client, desk: Desk, message: aiomqtt.Message, limit: int) -> None:
    topic = message.topic.value
    payload = message.payload if isinstance(message.payload, bytes) else b""
    try:
        if len(payload) > limit:
            raise SkerryError(f"the request has {len(payload)} bytes; at most {limit} go")
        model = topic.rpartition("/")[2]
        body, _ = await desk.infer(model, None, payload, None, traceparent=_traceparent(message))
    except SkerryError as error:
        body = orjson.dumps({"error": str(error), "code": error.code})
    given = message.properties
    said = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    to = getattr(given, "ResponseTopic", None) or f"{topic}/answer"
    if (data := getattr(given, "CorrelationData", None)) is not None:
        said.CorrelationData = data
    try:
        await client.publish(to, body, qos=1, properties=said)
    except (aiomqtt.MqttError, ValueError) as error:  # a response topic may be nonsense
        log.warning("an answer could not be published: %s", error)


def _traceparent(message: aiomqtt.Message) -> str:
    """Return the user property of that name (W3C Trace Context for MQTT)."""
    said = getattr(message.properties, "UserProperty", None) or ()
    return next((str(value)[:200] for name, value in said if name == "traceparent"), "")
