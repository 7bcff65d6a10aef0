"""Flower over our fleet: the only package of the cloud that imports flwr. Runs in the child.

`SkerryGrid` is what a ServerApp or Strategy takes for Flower's own network. Public API, but for
three things (FLOWER.md 2.5): `TaskIdentity`, which messages read; `Message(metadata=…)`, which
says whose a received message is; and a message's id, which its sender may not set.

`running` begins; `grid` carries messages; `watching` sees a strategy's rounds; `conversion` turns
records; `making` finds strategies and apps by name.
"""

from skerry_cloud.strategies.flower.conversion import (
    NumpyArray,
    arrays_of,
    from_flower,
    tensors_of,
    to_flower,
)
from skerry_cloud.strategies.flower.grid import SERVER_NODE, SkerryGrid
from skerry_cloud.strategies.flower.making import load_server_app, make_strategy
from skerry_cloud.strategies.flower.running import Evaluate, run_app, run_strategy
from skerry_cloud.strategies.flower.watching import watching

__all__ = [
    "SERVER_NODE",
    "Evaluate",
    "NumpyArray",
    "SkerryGrid",
    "arrays_of",
    "from_flower",
    "load_server_app",
    "make_strategy",
    "run_app",
    "run_strategy",
    "tensors_of",
    "to_flower",
    "watching",
]
