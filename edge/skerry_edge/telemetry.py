"""What a device tells about itself: load, memory, disk, temperature, battery, capabilities.

Capabilities and versions are found without importing what they name, so the agent stays small.
"""

import os
import platform
import shutil
import subprocess
import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import psutil

from skerry_edge.conditions import Readings

PACKAGES = {
    "torch": ("torch", "torch"),
    "flower": ("flwr", "flwr"),
    "numpy": ("numpy", "numpy"),
    "sklearn": ("sklearn", "scikit-learn"),
    "onnxruntime": ("onnxruntime", "onnxruntime"),
    "litert": ("ai_edge_litert", "ai-edge-litert"),
    "tflite": ("tflite_runtime", "tflite-runtime"),
}
"""Capability: the module that gives it, and the distribution that holds the module."""

ACCELERATORS = {
    "cuda": ("/dev/nvidia0", "/dev/nvhost-gpu", "/dev/nvgpu"),
    "coral": ("/dev/apex_0",),
    "hailo": ("/dev/hailo0",),
    "gpu": ("/dev/dri/renderD128", "/dev/kfd"),
}
"""Capability: device files, any of which shows it."""

STARTED = time.monotonic()


def read_machine(home: Path, *, metered: bool | None = None) -> Readings:
    """Return a look at the machine now; `metered` overrides what the system says."""
    memory = psutil.virtual_memory()
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    return Readings(
        busy=psutil.cpu_percent(interval=None) / 100,
        load1=os.getloadavg()[0],
        memory_total_bytes=memory.total,
        memory_available_bytes=memory.available,
        disk_free_bytes=shutil.disk_usage(home).free,
        temperature_c=hottest(),
        battery_percent=float(battery.percent) if battery else None,
        charging=battery.power_plugged if battery else None,
        metered=metered,
    )


def hottest() -> float | None:
    """Return the highest plausible temperature of any sensor, degrees Celsius."""
    found = psutil.sensors_temperatures() if hasattr(psutil, "sensors_temperatures") else {}
    degrees = [each.current for group in found.values() for each in group]
    return max((each for each in degrees if 0 < each < 150), default=None)


def ask_metered() -> bool | None:
    """Return whether NetworkManager says that the network costs by the byte; None: unknown."""
    tool = shutil.which("nmcli")
    if tool is None:
        return None
    try:
        done = subprocess.run(
            [tool, "-t", "-g", "GENERAL.METERED", "device", "show"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    words = done.stdout.split()
    if any(word.startswith("yes") for word in words):
        return True
    return False if any(word.startswith("no") for word in words) else None


@cache
def capabilities() -> tuple[str, ...]:
    """Return what the device can do, as selectors of runs name it."""
    found = ["cpu", platform.machine()]
    found += [name for name, (module, _) in PACKAGES.items() if find_spec(module) is not None]
    found += [
        name for name, files in ACCELERATORS.items() if any(Path(file).exists() for file in files)
    ]
    return tuple(found)


@cache
def versions() -> dict[str, str]:
    """Return versions of what matters for running apps, without importing any of it."""
    found = {"python": platform.python_version(), "os": platform.platform(terse=True)}
    for name, (_, distribution) in PACKAGES.items():
        try:
            found[name] = version(distribution)
        except PackageNotFoundError:
            continue
    return found


def uptime_s() -> float:
    """Return how long this agent has been running."""
    return time.monotonic() - STARTED
