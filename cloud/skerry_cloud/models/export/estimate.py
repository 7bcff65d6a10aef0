"""Latency and energy of a file on other processors: estimates, from what was measured here.

A model of two parts: the runtime's own work for each call goes with the clock, the rest with the
multiplications the processor does in a cycle on one core. Peak figures by architecture are from the
makers' optimisation guides (Arm Cortex-A72/A76/A78 software optimization guides; Intel 64 and IA-32
optimization manual); real use of the peak is taken to be as here. Good to about a factor of two.
"""

import platform
import re
from collections.abc import Mapping
from pathlib import Path

from skerry_cloud.models.export.request import Processor

# Multiplications a cycle and core: float32, and int8.
PEAKS: tuple[tuple[str, tuple[float, float]], ...] = (
    ("a53", (4, 8)),
    ("a55", (8, 32)),  # dot product instructions
    ("a57", (8, 16)),
    ("a72", (8, 16)),
    ("a76", (16, 64)),
    ("a78", (16, 64)),
    ("x1", (32, 128)),
    ("cortex", (8, 16)),
)
DEFAULT: Mapping[str, tuple[float, float]] = {
    "aarch64": (16, 64),
    "armv7l": (4, 8),
    "x86_64": (16, 32),  # AVX2
}
WIDE = (32, 128)  # AVX-512 with VNNI


def latency(here_s: float, processor: Processor, *, quantized: bool) -> float:
    """Return the seconds of one example there, on one thread, from the seconds here."""
    ours, its = _here(), _peak(processor.arch, processor.cpu)
    place = 1 if quantized else 0
    return here_s * (ours[1] * ours[0][place]) / (processor.clock_mhz * its[place])


def energy(latency_s: float, processor: Processor) -> float:
    """Return the joules of one example there: what the device draws above idle, on one core."""
    return latency_s * max(0.0, processor.busy_w - processor.idle_w)


def _peak(arch: str, cpu: str) -> tuple[float, float]:
    name = cpu.lower()
    for part, peak in PEAKS:
        if re.search(rf"\b(?:cortex-)?{part}\b", name) or (part == "cortex" and part in name):
            return peak
    return DEFAULT.get(arch, DEFAULT["x86_64"])


def _here() -> tuple[tuple[float, float], float]:
    """Return this machine's peaks and clock, MHz."""
    arch = platform.machine()
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    wide = arch == "x86_64" and "avx512" in text and "vnni" in text
    clock = re.search(r"cpu MHz\s*:\s*([\d.]+)", text)
    peak = WIDE if wide else DEFAULT.get(arch, DEFAULT["x86_64"])
    return peak, float(clock[1]) if clock else 2000.0
