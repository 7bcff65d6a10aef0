"""The child of answers.py: holds the models that answer for devices (… FD FOLDER)."""

import asyncio
import contextlib
import ctypes
import os
import resource
import shutil
import signal
import socket
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skerry_protos.channel import Channel, Said
from skerry_protos.errors import ConfigError, LinkError, PeerError
from skerry_protos.manifest import Manifest
from skerry_protos.packing import unpack_artefact
from skerry_protos.processing import meaning, prepared
from skerry_protos.records import Records, decode, encode
from skerry_protos.tensors import Tensor

GROUP = "tensors"
KEPT = 4
"""Models held at once; the one not asked for longest makes room."""
ROWS_LIMIT = 1024
PR_SET_PDEATHSIG = 1


class Held:
    """A loaded model."""

    def __init__(self, file: Path, folder: Path) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ConfigError(
                "the coordinator has no ONNX Runtime", hint="pip install onnxruntime"
            ) from error
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._manifest: Manifest = unpack_artefact(file, folder)
        self._session = onnxruntime.InferenceSession(
            str(folder / self._manifest.file), providers=["CPUExecutionProvider"]
        )
        self._steps = {one.input: one for one in self._manifest.preprocessing}

    def answer(self, raw: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Answer raw inputs (rows, ...); raise PeerError when they are not the model's."""
        ports = {one.name: one for one in self._manifest.inputs}
        if set(raw) != set(ports):
            raise PeerError(f"the model takes {sorted(ports)}, not {sorted(raw)!r:.200}")
        inputs = {}
        for name, values in raw.items():
            shape = ports[name].shape
            fits = values.ndim == len(shape) and all(
                expected in (None, size)
                for expected, size in zip(shape[1:], values.shape[1:], strict=True)
            )
            if not fits or not 0 < len(values) <= ROWS_LIMIT:
                raise PeerError(f"input {name!r} has shape {values.shape}; it takes {shape}")
            step = self._steps.get(name)
            made = values if step is None else prepared(step, values)
            inputs[name] = made.astype(np.dtype(ports[name].dtype), copy=False)
        names = [one.name for one in self._manifest.outputs]
        found = self._session.run(names, inputs)
        outputs: dict[str, NDArray[Any]] = dict(zip(names, found, strict=True))
        for step_out in self._manifest.postprocessing:
            if step_out.kind == "classes":
                made_of = meaning(step_out, outputs[step_out.output])
                outputs |= {k: v for k, v in made_of.items() if v.dtype.kind != "U"}
        return outputs


class Answering:
    """The process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: OrderedDict[str, Held] = OrderedDict()
        self._turn = asyncio.Lock()

    async def handle(self, said: Said, body: bytes) -> tuple[Said, bytes]:
        """Answer one question."""
        async with self._turn:
            return {}, await asyncio.to_thread(self._answer, said, body)

    def _answer(self, said: Said, body: bytes) -> bytes:
        digest = str(said["digest"])
        held = self._held.pop(digest, None)
        if held is None:
            held = Held(Path(said["file"]), self._folder / digest)
        self._held[digest] = held
        while len(self._held) > KEPT:
            gone, _ = self._held.popitem(last=False)
            shutil.rmtree(self._folder / gone, ignore_errors=True)
        asked = decode(body).arrays.get(GROUP, {})
        outputs = held.answer({name: tensor.numpy() for name, tensor in asked.items()})
        tensors = {name: Tensor.of(values) for name, values in outputs.items()}
        return b"".join(bytes(part) for part in encode(Records(arrays={GROUP: tensors})))


async def _main(end: socket.socket, folder: Path) -> None:
    channel = await Channel.over(end)
    await channel.serve(Answering(folder).handle)


def main() -> None:
    """Serve the coordinator at the other end of the socket whose descriptor is the argument."""
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end = socket.socket(fileno=int(sys.argv[1]))
    end.set_inheritable(False)
    with contextlib.suppress(LinkError):
        asyncio.run(_main(end, Path(sys.argv[2])))


if __name__ == "__main__":
    main()
