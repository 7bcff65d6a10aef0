"""The inference process: holds the runtime and the live models, answers HTTP and MQTT (… FD).

A child of the agent that dies with it. It runs no code of others: a model is data for its runtime.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from skerry_protos.channel import Channel, Said
from skerry_protos.errors import ConfigError, LinkError, SkerryError
from skerry_protos.records import Records, decode, encode
from skerry_protos.tensors import Tensor

from skerry_edge.energy.budget import Throttle
from skerry_edge.inference.desk import Desk, Outputs
from skerry_edge.inference.http import http_server
from skerry_edge.inference.measures import JOULES
from skerry_edge.inference.predictor import Predictor
from skerry_edge.inference.server import Endpoint
from skerry_edge.inference.settings import InferenceTable
from skerry_edge.worker import sandbox
from skerry_edge.worker.messages import Sandbox

log = logging.getLogger(__name__)

GROUP = "tensors"


class Child:
    """The process."""

    def __init__(self, channel: Channel, settings: InferenceTable, device: str) -> None:
        self._channel, self._settings, self._device = channel, settings, device
        self._desk = Desk(settings, cloud=self._ask_cloud)

    async def run(self, listening: socket.socket) -> None:
        """Serve until the agent closes its end."""
        endpoint = Endpoint(
            self._desk,
            token=self._settings.token,
            request_bytes=self._settings.request_mb * 2**20,
        )
        server = http_server(endpoint, queue=self._settings.queue)
        async with self._desk:
            serving = asyncio.create_task(server.serve(sockets=[listening]))
            topic = asyncio.create_task(self._answer_topic())
            try:
                await self._channel.serve(self._handle)
            finally:
                topic.cancel()
                server.should_exit = True
                await asyncio.wait({serving, topic})

    async def _answer_topic(self) -> None:
        if self._settings.mqtt:
            from skerry_edge.inference.topic import answer_topic  # needs the extra `mqtt`

            await answer_topic(self._desk, self._settings, self._device)

    async def _handle(self, said: Said, _body: bytes) -> tuple[Said, bytes]:
        match said.get("do"):
            case "serve":
                return await self._serve(said), b""
            case "withdraw":
                self._desk.withdraw(str(said["model"]))
                return {}, b""
            case "readings":
                JOULES.labels(str(said["source"])).set(float(said["joules"]))
                return self._readings(), b""
            case "throttle":
                self._desk.throttle(Throttle(said["step"]), str(said["why"]))
                return {}, b""
            case other:
                raise SkerryError(f"the inference process cannot do {other!r}")

    async def _serve(self, said: Said) -> Said:
        """Load a model beside the one that serves, try it, then serve it."""
        predictor = await asyncio.to_thread(
            Predictor.load,
            Path(said["folder"]),
            name=str(said["model"]),
            version=str(said["version"]),
            threads=int(said["threads"]),
        )
        try:
            await asyncio.to_thread(predictor.warm)
        except BaseException:
            predictor.close()
            raise
        await self._desk.serve(predictor, parallel=int(said["parallel"]))
        return {"runtime": predictor.platform}

    def _readings(self) -> Said:
        models = {
            one.name: {
                "version": one.predictor.version,
                "readings": one.measures.readings(),
                "rows": one.measures.rows,
                "drifted": list(one.measures.drift().drifted),
            }
            for one in self._desk.served
        }
        times = os.times()
        return {"models": models, "cpu_s": times.user + times.system}

    async def _ask_cloud(
        self, model: str, inputs: Mapping[str, NDArray[Any]], traceparent: str
    ) -> Outputs:
        """Ask the cloud's bigger model, through the agent's link."""
        tensors = {name: Tensor.of(values) for name, values in inputs.items()}
        asked = b"".join(bytes(part) for part in encode(Records(arrays={GROUP: tensors})))
        wait_s = self._settings.cloud_wait_ms / 1e3
        question = {"do": "cloud", "model": model, "traceparent": traceparent}
        _, body = await self._channel.ask(question, asked, timeout_s=wait_s)
        found = decode(body).arrays.get(GROUP, {})
        return {name: tensor.numpy() for name, tensor in found.items()}


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; raise ConfigError naming the address that is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # By its protocol asyncio knows that it is TCP, and sends without Nagle's delay.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"the inference endpoint cannot listen on {host}:{port}: {error.strerror}",
            hint="change [inference] port in agent.toml; 0 takes a free one",
        ) from error
    listening.setblocking(False)
    return listening


async def _main(end: socket.socket) -> None:
    channel = await Channel.over(end)
    begun: list[tuple[Child, socket.socket]] = []

    async def begin(said: Said, _body: bytes) -> tuple[Said, bytes]:
        sandbox.enter(Sandbox(**said["sandbox"]))
        settings = InferenceTable(**said["settings"])
        listening = listen(settings.host, settings.port)
        begun.append((Child(channel, settings, str(said["device"])), listening))
        return {"port": listening.getsockname()[1]}, b""

    await channel.serve_one(begin)  # how to limit ourselves, and the settings
    for child, listening in begun:
        await child.run(listening)


def main() -> None:
    """Serve the agent at the other end of the socket whose descriptor is the argument."""
    logging.basicConfig(level=logging.WARNING, format="inference: %(message)s")
    # The agent decides when to end: a terminal's Ctrl-C goes to the whole group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end = socket.socket(fileno=int(sys.argv[1]))
    end.set_inheritable(False)
    with contextlib.suppress(LinkError):
        asyncio.run(_main(end))


if __name__ == "__main__":
    main()
