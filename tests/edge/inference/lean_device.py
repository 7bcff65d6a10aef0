"""What a device with no more than `skerry-edge[grpc,onnx]` does with a packed artefact (ZIP HOME).

Run by the Python of such a device: stages the release into a slot, tries it on its golden set, lets
the inference service serve it, and asks it as a program on the device would. Prints one object.
"""

import asyncio
import hashlib
import json
import sys
import urllib.request
from importlib.util import find_spec
from pathlib import Path

from skerry_edge.config import AgentConfig
from skerry_edge.energy import open_budget
from skerry_edge.inference.selftest import Trials
from skerry_edge.inference.service import Inference
from skerry_edge.inference.settings import InferenceTable
from skerry_edge.models.slots import Release, Slots
from skerry_protos.messages import Digest
from skerry_protos.packing import unpack_artefact


def ask(port: int) -> dict[str, object]:
    data = [[float(at % 3) for at in range(16)]]
    body = {"inputs": [{"name": "x", "shape": [1, 16], "datatype": "FP32", "data": data}]}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v2/models/tiny/infer", data=json.dumps(body).encode()
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        said: dict[str, object] = json.load(answer)
        return said


async def main(artefact: Path, home: Path) -> dict[str, object]:
    content = await asyncio.to_thread(artefact.read_bytes)
    release = Release(
        model="tiny",
        version=1,
        target="stable/tiny/1/onnx-none.zip",
        digest=Digest(hashlib.sha256(content).hexdigest()),
        size=len(content),
    )
    slots = Slots(home / "models/tiny", home / "trust/tiny.json", unpack=unpack_artefact)
    slot = slots.stage(release, artefact)
    readings = await Trials().test(slot, timeout_s=60)
    live = slots.promote()
    config = AgentConfig(home=home, inference=InferenceTable(port=0))
    async with Inference(config, "lean", open_budget(home, config.energy)) as inference:
        await inference.swap("tiny", live)
        answer = await asyncio.to_thread(ask, inference.port)
    has = [name for name in ("torch", "flwr", "onnx", "zstandard") if find_spec(name)]
    return {"readings": readings, "answer": answer, "has": has}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))))
