"""The bigger model in the cloud: answers inputs that a device's own model is unsure of.

The version of a model that is labelled `cloud` answers (`skerry models label digits@7 cloud`). A
device opens a stream of kind "infer": the first message is JSON {"model"}, the others are its raw
inputs as records; the answer is records likewise. The model runs in a child process (`answering`),
begun with the first question, so that a runtime's crash takes no coordinator with it.
"""

import asyncio
import contextlib
import json
import logging
import os
import socket
import sys
from pathlib import Path
from typing import Self

from skerry_protos import tracing
from skerry_protos.blobs import LocalBlobs
from skerry_protos.channel import Channel, Said
from skerry_protos.errors import LinkError, PeerError, RejectCode, RejectedError, SkerryError
from skerry_protos.messages import DeviceId
from skerry_protos.seams import Stream

from skerry_cloud.models.registry import Models

log = logging.getLogger(__name__)

KIND = "infer"
LABEL = "cloud"
RUNTIME = "onnx"
QUESTION_LIMIT = 16 * 2**20
PART = 256 * 1024
AT_ONCE = 32
"""Questions that may wait or be worked on; one more is told to do without."""
ANSWER_S = 30.0
READ_S = 30.0


class Answers:
    """An async context manager; `serve` takes a device's streams of its kind."""

    kind = KIND

    def __init__(self, models: Models, blobs: LocalBlobs, folder: Path) -> None:
        """Unpack artefacts below `folder`."""
        self._models, self._blobs, self._folder = models, blobs, folder
        self._channel: Channel | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._now = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """End the child."""
        await self._end()

    async def serve(self, device: DeviceId, stream: Stream) -> None:
        """Answer one question; what is wrong with it is said by aborting the stream."""
        if self._now >= AT_ONCE:
            await stream.abort("busy", f"{AT_ONCE} questions wait already")
            return
        self._now += 1
        try:
            async with asyncio.timeout(READ_S + ANSWER_S):
                model, inputs = await _question(stream)
                with _answering(stream, device, model):
                    answer = await self._answer(model, inputs)
                for at in range(0, len(answer), PART):
                    await stream.send(memoryview(answer)[at : at + PART])
                await stream.finish()
        except (PeerError, RejectedError) as error:
            await stream.abort(RejectCode.MALFORMED, error.message[:300])
        except TimeoutError:
            await stream.abort("deadline", "the answer took too long")
        except LinkError as error:
            log.warning("a question of %s was not answered: %s", device, error)
            await stream.abort("unavailable", "the model is not there now")
        except SkerryError as error:
            await stream.abort("unavailable", error.message[:300])
        finally:
            self._now -= 1

    async def _answer(self, model: str, inputs: bytes) -> bytes:
        version = await self._models.find(f"{model}@{LABEL}")
        artefact = next((one for one in version.artefacts if one.runtime == RUNTIME), None)
        if artefact is None or version.retired_at is not None:
            raise SkerryError(f"the version of {model!r} labelled {LABEL} has no ONNX artefact")
        file = self._blobs.path(artefact.digest)
        if file is None:
            raise SkerryError(f"the artefact of {model!r} is not here any more")
        channel = await self._child()
        said: Said = {"do": "answer", "digest": artefact.digest, "file": str(file)}
        _, answer = await channel.ask(said, inputs, timeout_s=ANSWER_S)
        return answer

    async def _child(self) -> Channel:
        """Return the channel to the child, which is begun when there is none."""
        async with self._starting:
            if self._channel is not None and self._reading is not None:
                if not self._reading.done():
                    return self._channel
                await self._end()
            ours, theirs = socket.socketpair()
            self._folder.mkdir(parents=True, exist_ok=True)
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-P", "-m", "skerry_cloud.models.answering", str(theirs.fileno())),
                str(self._folder),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                env={
                    key: os.environ[key]
                    for key in ("PATH", "LANG", "PYTHONPATH", "HOME")
                    if key in os.environ
                },
            )
            theirs.close()
            self._channel = await Channel.over(ours)
            self._reading = asyncio.create_task(self._channel.serve(_nothing))
            return self._channel

    async def _end(self) -> None:
        if self._channel is not None:
            self._channel.close()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait({self._reading})
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        self._channel = self._reading = self._process = None


def _answering(
    stream: Stream, device: DeviceId, model: str
) -> contextlib.AbstractContextManager[object]:
    """Tell of the answer, in the trace that the device has begun."""
    parent = tracing.parent_of(stream.trace)
    if not parent:
        return contextlib.nullcontext()
    return tracing.spanning(
        "answer",
        trace=stream.trace,
        parent=parent,
        scope="skerry.models",
        device=device,
        model=model,
    )


async def _question(stream: Stream) -> tuple[str, bytes]:
    """Return the model's name and the inputs; raise PeerError when it is no question."""
    try:
        said = json.loads(await stream.receive())
        model = said["model"]
        if not isinstance(model, str) or not 0 < len(model) <= 64:
            raise TypeError("model must be a name")
    except (ValueError, KeyError, TypeError, EOFError, RecursionError) as error:
        raise PeerError(f"the question cannot be read: {error}") from error
    inputs = bytearray()
    async for part in stream:
        inputs += part
        if len(inputs) > QUESTION_LIMIT:
            raise PeerError(f"the question has more than {QUESTION_LIMIT} bytes")
    return model, bytes(inputs)


async def _nothing(said: Said, _body: bytes) -> tuple[Said, bytes]:
    raise SkerryError(f"the coordinator does not answer {said.get('do')!r:.40}")
