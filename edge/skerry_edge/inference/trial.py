"""The self test of an artefact: load it, answer its golden set, say how it went.

Called with FOLDER THREADS BYTES IDLE_W BUSY_W (the device's watts, for estimates of energy).

Runs as a process of its own, apart from what serves: a model that crashes its runtime or takes all
memory takes nothing else with it. Prints one JSON object.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skerry_protos.errors import SkerryError

from skerry_edge.energy.inference import energy_of
from skerry_edge.energy.meters import find_meter
from skerry_edge.inference.predictor import Predictor
from skerry_edge.inference.runtimes import ModelError

LATENCY_RUNS = 30
NICENESS = 5


def try_artefact(
    folder: Path, *, threads: int = 1, idle_w: float = 2.0, busy_w: float = 6.0
) -> dict[str, float]:
    """Return readings (skerry_protos.artefacts.Reading); raise SkerryError when it fails."""
    began = time.perf_counter()
    predictor = Predictor.load(folder, threads=threads)
    predictor.warm()
    found = {"load_s": time.perf_counter() - began}
    golden = predictor.manifest.golden
    try:
        with np.load(folder / golden.file, allow_pickle=False) as kept:
            arrays: dict[str, NDArray[Any]] = {name: kept[name] for name in kept.files}
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"the golden set cannot be read: {error}") from error
    inputs = {one.name: arrays.get(f"input.{one.name}") for one in predictor.manifest.inputs}
    first = predictor.manifest.outputs[0].name
    expected = arrays.get(f"output.{first}")
    if expected is None or any(values is None for values in inputs.values()):
        raise ModelError("the golden set lacks an input or an output of the model")
    given = {name: values for name, values in inputs.items() if values is not None}
    outputs = predictor.answer(given)[first]
    if outputs.shape != expected.shape:
        raise ModelError(f"the golden set has outputs {expected.shape}; it gave {outputs.shape}")
    if golden.compare == "argmax":
        same = outputs.argmax(axis=-1) == expected.argmax(axis=-1)
    else:
        apart = np.abs(outputs.astype(np.float64) - expected.astype(np.float64))
        same = apart.reshape(len(apart), -1).max(axis=1) <= golden.tolerance
    found["agreement"] = float(same.mean())
    if "labels" in arrays and golden.compare == "argmax":
        found["accuracy"] = float((outputs.argmax(axis=-1) == arrays["labels"]).mean())
    if found["agreement"] < golden.min_agreement:
        raise ModelError(
            f"the self test agrees on {found['agreement']:.1%} of the golden set; "
            f"{golden.min_agreement:.1%} are needed"
        )
    one = {name: values[:1] for name, values in given.items()}
    times = []
    for _ in range(LATENCY_RUNS):
        predictor.answer(one)
        times.append(predictor.last_s)
    found["latency_p95_s"] = float(np.quantile(times, 0.95))
    meter = find_meter(idle_w=idle_w, busy_w=busy_w)
    found["energy_j"] = energy_of(
        lambda: predictor.answer(one), meter=meter, idle_w=idle_w, busy_w=busy_w
    )
    found["memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    predictor.close()
    return found


def main() -> int:
    """Try the artefact in the folder that is the first argument."""
    folder, threads, memory = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    idle_w, busy_w = float(sys.argv[4]), float(sys.argv[5])
    os.nice(NICENESS)  # what serves meanwhile comes first
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory:
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    said: dict[str, Any]
    try:
        said = {"readings": try_artefact(folder, threads=threads, idle_w=idle_w, busy_w=busy_w)}
    except SkerryError as error:
        said = {"error": str(error)}
    except MemoryError:
        said = {"error": f"it takes more memory than the {memory / 2**20:.0f} MB it may"}
    sys.stdout.write(json.dumps(said))
    return 0


if __name__ == "__main__":
    sys.exit(main())
