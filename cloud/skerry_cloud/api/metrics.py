"""The coordinator's figures for Prometheus, at /metrics; a viewer's token reads them.

    scrape_configs:
      - job_name: skerry
        scheme: https
        tls_config: {ca_file: /etc/skerry/ca.pem}
        authorization: {credentials_file: /etc/skerry/viewer.token}
        static_configs: [{targets: ["coordinator:8470"]}]

They are read from the database when asked for: a restart loses nothing and counts nothing twice.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import sqlalchemy as sa
from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector
from prometheus_client import generate_latest as exposition
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from skerry_cloud.api.auth import needs
from skerry_cloud.registry import Registry
from skerry_cloud.store import Store
from skerry_cloud.store.operators import Role
from skerry_cloud.store.tables import blobs, rollout_devices, rollouts, runs, tasks

Counts = list[tuple[tuple[str, ...], float]]


@dataclass(slots=True)
class Look:
    """What was found at one scrape."""

    devices: Counter[str] = field(default_factory=Counter)
    transports: Counter[str] = field(default_factory=Counter)
    energy_j: dict[str, float] = field(default_factory=dict)
    runs: Counts = field(default_factory=list)
    rounds: Counts = field(default_factory=list)
    tasks: Counts = field(default_factory=list)
    down: float = 0.0
    up: float = 0.0
    rollouts: Counts = field(default_factory=list)
    releases: Counts = field(default_factory=list)
    blobs: Counts = field(default_factory=list)


class Figures(Collector):
    """One look, as Prometheus wants it."""

    def __init__(self, look: Look, healthy: bool) -> None:
        self._look, self._healthy = look, healthy

    def collect(self) -> Iterator[Metric]:
        """Yield each family with its samples."""
        look = self._look
        yield GaugeMetricFamily(
            "skerry_up", "Whether the coordinator does its work", value=float(self._healthy)
        )
        yield _gauge("skerry_devices", "Devices", ["state"], look.devices.items())
        yield _gauge(
            "skerry_devices_connected", "Devices here now", ["transport"], look.transports.items()
        )
        yield _gauge(
            "skerry_devices_energy_today_joules",
            "Energy that devices say they used since midnight UTC",
            ["source"],
            look.energy_j.items(),
        )
        yield _gauge("skerry_runs", "Runs", ["state"], look.runs)
        yield _gauge("skerry_run_round", "Round of a run under way", ["run"], look.rounds)
        yield _gauge("skerry_tasks", "Tasks of devices that are kept", ["state"], look.tasks)
        yield CounterMetricFamily(
            "skerry_task_bytes_down", "Bytes of tasks sent to devices", value=look.down
        )
        yield CounterMetricFamily(
            "skerry_task_bytes_up", "Bytes of replies taken from devices", value=look.up
        )
        yield _gauge("skerry_rollouts", "Rollouts", ["state"], look.rollouts)
        yield _gauge(
            "skerry_rollout_devices", "Devices of rollouts", ["rollout", "state"], look.releases
        )
        yield _gauge("skerry_blob_bytes", "Bytes kept", ["role"], look.blobs)


def router(registry: Registry, store: Store) -> APIRouter:
    """Return the route."""
    made = APIRouter(tags=["health"])

    @made.get("/metrics", dependencies=[needs(Role.VIEWER)], response_class=Response)
    async def metrics() -> Response:
        """Show the coordinator's figures in Prometheus' text format."""
        look = await store.read(_look)
        for device in await registry.devices():
            look.devices[device.state] += 1
            if device.connected:
                look.transports[device.transport or "unknown"] += 1
            used = device.heartbeat.get("energy_today_j")
            if isinstance(used, int | float) and 0 <= used < 1e12 and device.revoked_at is None:
                source = str(device.heartbeat.get("energy_source", ""))[:32]
                look.energy_j[source] = look.energy_j.get(source, 0.0) + used
        found = CollectorRegistry()
        ProcessCollector(namespace="skerry_coordinator", registry=found)
        found.register(Figures(look, healthy=store.stuck is None))
        return Response(exposition(found), media_type=CONTENT_TYPE_LATEST)

    return made


def _look(connection: sa.Connection) -> Look:
    look = Look()
    look.runs = _counted(connection, runs.c.state)
    open_runs = sa.select(runs.c.id, runs.c.round).where(runs.c.ended_at.is_(None))
    look.rounds = [((row.id,), float(row.round)) for row in connection.execute(open_runs)]
    look.tasks = _counted(connection, tasks.c.state)
    moved = sa.select(sa.func.sum(tasks.c.bytes_down), sa.func.sum(tasks.c.bytes_up))
    down, up = connection.execute(moved).one()
    look.down, look.up = float(down or 0), float(up or 0)
    look.rollouts = _counted(connection, rollouts.c.state)
    recent = sa.or_(rollouts.c.ended_at.is_(None), rollouts.c.ended_at > time.time() - 86400)
    chosen = (
        sa.select(rollout_devices.c.rollout, rollout_devices.c.state, sa.func.count())
        .join(rollouts, rollouts.c.id == rollout_devices.c.rollout)
        .where(recent)
        .group_by(rollout_devices.c.rollout, rollout_devices.c.state)
    )
    look.releases = [
        ((rollout, state), float(count)) for rollout, state, count in connection.execute(chosen)
    ]
    sizes = sa.select(blobs.c.role, sa.func.sum(blobs.c.size)).group_by(blobs.c.role)
    look.blobs = [((role,), float(size)) for role, size in connection.execute(sizes)]
    return look


def _counted(connection: sa.Connection, column: sa.Column[str]) -> Counts:
    found = connection.execute(sa.select(column, sa.func.count()).group_by(column))
    return [((value,), float(count)) for value, count in found]


def _gauge(
    name: str, about: str, labels: list[str], samples: Iterable[tuple[tuple[str, ...] | str, float]]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, about, labels=labels)
    for values, value in samples:
        family.add_metric([values] if isinstance(values, str) else list(values), value)
    return family
