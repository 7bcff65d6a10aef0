"""A policy: which drift, seen by how many devices, begins which run, and how often at most.

Devices compare what comes in with the model's reference themselves and report one number, the
largest population stability index that chance does not explain (skerry_protos.drift). A policy
counts the devices whose newest report is recent and at or above the threshold.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from skerry_protos.artefacts import Phase, Reading, model_name
from skerry_protos.errors import ConfigError
from skerry_protos.messages import DeviceId
from skerry_protos.settings import require_known

from skerry_cloud.runs.plan import RunOptions
from skerry_cloud.store.models import Report

DAY_S = 86_400.0
SERVES = frozenset({Phase.TRIAL, Phase.LIVE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What an operator asked for, and what came of it."""

    model: str
    app: str
    """Digest (or a beginning of it) of the app that the run is of."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the run (skerry_cloud.runs.plan.RunOptions)."""
    threshold: float = 0.2
    """Population stability index from which on a device counts."""
    min_devices: int = 1
    """How many devices must count."""
    window_s: float = DAY_S
    """A report older than this says nothing of now."""
    cooldown_s: float = DAY_S
    """At least so long between the begins of two runs."""
    enabled: bool = True
    created_at: float = 0.0
    created_by: str = ""
    last_at: float | None = None
    """When a run was begun (or tried to) last."""
    last_run: str = ""
    last_why: str = ""

    def __post_init__(self) -> None:
        model_name(self.model)
        for name, least, most in (
            ("threshold", 0.0, 1e6),
            ("min_devices", 1, 1_000_000),
            ("window_s", 1.0, 365 * DAY_S),
            ("cooldown_s", 1.0, 365 * DAY_S),
        ):
            value = getattr(self, name)
            if not math.isfinite(value) or not least <= value <= most:
                raise ConfigError(f"policy: {name} must be {least:g} to {most:g}, not {value!r}")
        if not self.threshold:
            raise ConfigError("policy: threshold must be above 0, or every device would count")
        RunOptions.parse(dict(self.options))

    @classmethod
    def parse(cls, model: str, table: Mapping[str, Any], *, by: str, now: float) -> "Policy":
        """Return a new policy from JSON; ConfigError names the key and the nearest valid one."""
        asked = ("app", "options", *NUMBERS, "enabled")
        for key in table:
            require_known(str(key), asked, source="policy")
        for key in NUMBERS & table.keys():
            if isinstance(table[key], bool) or not isinstance(table[key], int | float):
                raise ConfigError(f"policy: {key} must be a number, not {table[key]!r}")
        if not isinstance(table.get("app"), str) or not table["app"]:
            raise ConfigError("policy: it needs an app", hint="the digest of one that was sent")
        if not isinstance(table.get("options", {}), Mapping):
            raise ConfigError("policy: options must be a table")
        values = {each.name: table[each.name] for each in fields(cls) if each.name in table}
        return cls(model=model, created_by=by, created_at=now, **values)

    @property
    def by(self) -> str:
        """Who begins its runs, as runs and the audit log name it."""
        return f"policy:{self.model}"[:64]


NUMBERS = frozenset({"threshold", "min_devices", "window_s", "cooldown_s"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a run is to begin now, and why (not)."""

    begin: bool
    why: str
    devices: tuple[DeviceId, ...] = ()
    """Those whose drift counts, the farthest first."""
    again_at: float | None = None
    """When time alone may change the verdict."""


def judge(
    policy: Policy,
    reports: Iterable[Report],
    *,
    now: float,
    enrolled: Collection[str],
    open_run: str = "",
) -> Verdict:
    """Return what the newest reports on the model say by this policy."""
    drift: dict[DeviceId, float] = {}
    for report in reports:
        value = report.readings.get(Reading.DRIFT, 0.0)
        recent = now - report.at <= policy.window_s
        serves = report.phase in SERVES and report.device in enrolled
        if report.model == policy.model and recent and serves and value >= policy.threshold:
            drift[report.device] = value
    devices = tuple(sorted(drift, key=lambda device: (-drift[device], device)))
    seen = f"{len(devices)} of {policy.min_devices} devices drift by {policy.threshold:g} or more"
    if not policy.enabled:
        return Verdict(begin=False, why="it is off", devices=devices)
    if len(devices) < policy.min_devices:
        return Verdict(begin=False, why=seen, devices=devices)
    if open_run:
        return Verdict(begin=False, why=f"run {open_run} is under way", devices=devices)
    if policy.last_at is not None and now < policy.last_at + policy.cooldown_s:
        again = policy.last_at + policy.cooldown_s
        why = f"{seen}; the last run was less than the cooldown ago"
        return Verdict(begin=False, why=why, devices=devices, again_at=again)
    worst = drift[devices[0]]
    why = (
        f"{len(devices)} devices drift by {policy.threshold:g} or more, {devices[0]} by {worst:.3g}"
    )
    return Verdict(begin=True, why=why, devices=devices)
