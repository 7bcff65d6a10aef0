"""What an operator asks of a rollout: waves, soak, gates; read strictly, drawn the same always."""

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from skerry_protos.artefacts import HealthLimits
from skerry_protos.errors import ConfigError
from skerry_protos.messages import DeviceId
from skerry_protos.settings import require_known

from skerry_cloud.durations import parse_duration
from skerry_cloud.selectors import parse

WAVES_LIMIT = 50
_PERCENT = re.compile(r"(\d{1,3}(?:\.\d{1,3})?)%")
_COUNT = re.compile(r"[1-9]\d{0,8}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gates:
    """What a wave must hold to be followed by the next, beside every device's own health."""

    max_failed: float = 0.0
    """Share of the devices that answered which may have refused or failed."""
    min_answered: float = 1.0
    """Share of the wave's devices that must have answered."""
    max_latency_ratio: float = 0.0
    """The wave's median p95 latency against that of the version before on the same devices."""

    def __post_init__(self) -> None:
        for name in ("max_failed", "min_answered"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"rollout: {name} must be 0 to 1, not {getattr(self, name)}")
        if self.max_latency_ratio < 0:
            raise ConfigError("rollout: max_latency_ratio must be 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A rollout as it was asked for."""

    waves: tuple[str, ...] = ("5%", "25%", "100%")
    """Each a share of all devices (`25%`), a number of them (`10`) or a selector (`site=lab`)."""
    selector: str = ""
    """Which devices at all."""
    soak_s: float = 300.0
    """How long a wave is watched before the next."""
    wave_s: float = 24 * 3600.0
    """How long a wave's devices have to answer; then the rollout pauses and says who has not."""
    period_s: float = 30.0
    """A device's health period."""
    trial_s: float = 60.0
    """How long a device watches the version before it counts as live."""
    on_failure: str = "rollback"
    """rollback: devices go back and the version is quarantined; pause: a person decides."""
    retry: bool = False
    """Try it on devices again that found it bad before."""
    force: bool = False
    """Roll out a version that was quarantined."""
    health: HealthLimits = field(default_factory=HealthLimits)
    gates: Gates = field(default_factory=Gates)

    def __post_init__(self) -> None:
        if not 1 <= len(self.waves) <= WAVES_LIMIT:
            raise ConfigError(f"rollout: 1 to {WAVES_LIMIT} waves, not {len(self.waves)}")
        for wave in self.waves:
            _check_wave(wave)
        parse(self.selector)
        for name, least, most in (
            ("soak_s", 0.0, 30 * 86_400.0),
            ("wave_s", 1.0, 90 * 86_400.0),
            ("period_s", 0.1, 86_400.0),
            ("trial_s", 0.0, 7 * 86_400.0),
        ):
            if not least <= getattr(self, name) <= most:
                raise ConfigError(f"rollout: {name} must be {least:g} to {most:g}")
        if self.on_failure not in {"rollback", "pause"}:
            raise ConfigError("rollout: on_failure must be 'rollback' or 'pause'")

    @classmethod
    def parse(cls, table: object) -> Self:
        """Return the plan in a JSON table; ConfigError names the key and the nearest valid one."""
        if not isinstance(table, Mapping):
            raise ConfigError("rollout: the plan must be a table")
        known = {each.name: each for each in fields(cls)}
        values: dict[str, Any] = {}
        for key, value in table.items():
            require_known(str(key), known, source="rollout")
            values[str(key)] = _read(str(key), value)
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as a JSON table."""
        return {**asdict(self), "waves": list(self.waves)}

    def wish(self) -> dict[str, Any]:
        """Return what the director tells devices."""
        return {
            "period_s": self.period_s,
            "trial_s": self.trial_s,
            "retry": self.retry,
            "gates": self.health.to_json(),
        }


def _read(key: str, value: Any) -> Any:
    if key == "health":
        return HealthLimits.parse(value)
    if key == "gates":
        if not isinstance(value, Mapping):
            raise ConfigError("rollout: gates must be a table")
        for each in value:
            require_known(str(each), Gates.__dataclass_fields__, source="rollout", name="gates")
        return Gates(**{name: _number(f"gates.{name}", number) for name, number in value.items()})
    if key == "waves":
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise ConfigError('rollout: waves must be a list, as ["5%", "25%", "100%"]')
        return tuple(str(each).strip() for each in value)
    if key in {"retry", "force"}:
        if not isinstance(value, bool):
            raise ConfigError(f"rollout: {key} must be true or false")
        return value
    if key in {"selector", "on_failure"}:
        if not isinstance(value, str):
            raise ConfigError(f"rollout: {key} must be a text")
        return value
    return parse_duration(value) if isinstance(value, str) else _number(key, value)


def _number(key: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ConfigError(f"rollout: {key} must be a number, not {value!r:.80}")
    return float(value)


def _check_wave(wave: str) -> None:
    if found := _PERCENT.fullmatch(wave):
        if not 0 < float(found[1]) <= 100:
            raise ConfigError(f"rollout: a wave of {wave} is no share")
    elif not _COUNT.fullmatch(wave):
        if not wave:
            raise ConfigError("rollout: a wave is a share (25%), a number (10) or a selector")
        parse(wave)


def draw(
    rollout: str, plan: Plan, devices: Mapping[DeviceId, Mapping[str, str]]
) -> dict[DeviceId, int]:
    """Return which wave each device is in; shares and numbers are of all, drawn by the id.

    A percentage or number says how many have the version once the wave is over; a selector adds
    those it names. Who is in no wave is left out.
    """
    order = sorted(devices, key=lambda each: hashlib.sha256(f"{rollout}/{each}".encode()).digest())
    placed: dict[DeviceId, int] = {}
    for number, wave in enumerate(plan.waves):
        if found := _PERCENT.fullmatch(wave):
            wanted = math.ceil(len(order) * float(found[1]) / 100)
        elif _COUNT.fullmatch(wave):
            wanted = int(wave)
        else:
            selector = parse(wave)
            _place(placed, (each for each in order if selector.matches(devices[each])), number)
            continue
        missing = max(0, wanted - len(placed))
        _place(placed, [each for each in order if each not in placed][:missing], number)
    return placed


def is_for_newcomer(plan: Plan, labels: Mapping[str, str]) -> bool:
    """Return whether a device that comes later is meant too: one of all, not of a share of them."""
    if not parse(plan.selector).matches(labels):
        return False
    for wave in plan.waves:
        if found := _PERCENT.fullmatch(wave):
            if float(found[1]) >= 100:
                return True
        elif not _COUNT.fullmatch(wave) and parse(wave).matches(labels):
            return True
    return False


def _place(placed: dict[DeviceId, int], devices: Iterable[DeviceId], wave: int) -> None:
    for device in devices:
        placed.setdefault(device, wave)
