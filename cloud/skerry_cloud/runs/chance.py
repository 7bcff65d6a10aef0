"""The randomness of a run's server side: begun from the run's seed, kept and put back.

`random`, NumPy's global generator and torch's are what model initialisation, Flower's sampling and
its noise draw from. Hashing of texts is fixed by PYTHONHASHSEED. What asks the operating system
(`secrets`, `uuid`, `numpy.random.default_rng()` without a seed) is not covered.
"""

import random
import sys
from typing import Any

import numpy as np

SEEDS = 2**32
"""NumPy's limit."""


def begin(seed: int) -> None:
    """Begin with this seed; before any of the app's code."""
    random.seed(seed)
    np.random.seed(seed % SEEDS)


def begin_torch(seed: int) -> None:
    """Begin torch's with this seed, if the app has loaded torch; after its modules are imported."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(seed)


def state() -> dict[str, Any]:
    """Return the state of all generators: numbers and arrays only."""
    version, words, gauss = random.getstate()
    kind, key, place, has_gauss, cached = np.random.get_state()
    found: dict[str, Any] = {
        "random": [version, list(words), gauss],
        "numpy": [str(kind), np.array(key), int(place), int(has_gauss), float(cached)],
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        found["torch"] = torch.get_rng_state().numpy().copy()
    return found


def restore(found: dict[str, Any]) -> None:
    """Put all generators into a state."""
    version, words, gauss = found["random"]
    random.setstate((version, tuple(words), gauss))
    kind, key, place, has_gauss, cached = found["numpy"]
    np.random.set_state((kind, np.asarray(key), place, has_gauss, cached))
    torch = sys.modules.get("torch")
    if torch is not None and "torch" in found:
        torch.set_rng_state(torch.from_numpy(np.array(found["torch"], dtype=np.uint8)))
