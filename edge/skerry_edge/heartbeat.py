"""The heartbeat: what a device says of itself every few seconds, as a message."""

import os
import platform
import time
from collections.abc import Mapping, Sequence
from typing import Literal

from skerry_protos.codecs import installed as codecs
from skerry_protos.messages import BESIDE
from skerry_protos.v1 import work_pb2
from skerry_protos.versions import installed_version

from skerry_edge.conditions import Readings
from skerry_edge.telemetry import capabilities, uptime_s, versions

FEATURES = (BESIDE,)
"""What this agent can beyond what its protocol's version says."""
State = Literal["idle", "working", "waiting"]


def heartbeat(
    look: Readings,
    *,
    profile: str,
    state: State,
    waiting_for: str,
    tasks: Sequence[str],
    energy_today_j: float | None = None,
    energy_source: str = "",
    labels: Mapping[str, str] | None = None,
) -> work_pb2.Heartbeat:
    """Return the heartbeat for a look at the machine; sensors that are not there say nothing."""
    return work_pb2.Heartbeat(
        unix_time_s=time.time(),
        agent_version=installed_version("skerry-edge"),
        profile=profile,
        uptime_s=uptime_s(),
        load1=look.load1,
        memory_total_bytes=look.memory_total_bytes,
        memory_available_bytes=look.memory_available_bytes,
        disk_free_bytes=look.disk_free_bytes,
        temperature_c=look.temperature_c,
        battery_percent=look.battery_percent,
        charging=look.charging,
        metered=look.metered,
        state=state,
        waiting_for=waiting_for,
        capabilities=capabilities(),
        versions=versions(),
        tasks=tasks,
        arch=platform.machine(),
        cpus=os.cpu_count() or 0,
        codecs=codecs(),
        features=FEATURES,
        energy_today_j=energy_today_j,
        energy_source=energy_source,
        labels=labels,
    )
