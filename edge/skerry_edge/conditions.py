"""When a device works for others: only while it is idle, charging, on a free network, at night.

As in phones' job schedulers, a task whose conditions do not hold is kept, and the heartbeat says
which one it waits for and until when.
"""

import re
from dataclasses import dataclass, replace
from datetime import datetime, time, timedelta

_HOURS = re.compile(r"(\d{1,2}):(\d{2})-(\d{1,2}):(\d{2})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """One look at the machine; None where it has no such sensor."""

    busy: float = 0.0
    """Share of the CPU in use since the last look, 0 to 1."""
    load1: float = 0.0
    memory_total_bytes: int = 0
    memory_available_bytes: int = 0
    disk_free_bytes: int = 1 << 40
    temperature_c: float | None = None
    battery_percent: float | None = None
    charging: bool | None = None
    metered: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What must hold for the device to begin a task; the defaults hold always."""

    idle_below: float = 0.0
    """Begin only while less than this share of the CPU is busy (0 to 1; 0: whenever)."""
    charging: bool = False
    """Begin only on external power; a device without a battery always has it."""
    unmetered: bool = False
    """Begin only on a network that does not cost by the byte; unknown counts as free."""
    hours: tuple[str, ...] = ()
    """Local times to begin in, as "22:00-06:00"."""
    min_battery: float = 0.0
    """Begin only above this charge, percent."""
    max_temperature: float = 0.0
    """Begin only below this temperature, degrees Celsius (0: whatever it is)."""
    min_disk_mb: int = 64
    """Begin only with this much free disk."""
    interrupt: bool = False
    """Also stop a task that has begun when one of them, but `idle_below`, no longer holds."""

    def __post_init__(self) -> None:
        for text in self.hours:
            window(text)
        if not 0 <= self.idle_below <= 1:
            raise ValueError("idle_below must be 0 to 1")
        if not 0 <= self.min_battery <= 100:
            raise ValueError("min_battery must be 0 to 100")


def window(text: str) -> tuple[time, time]:
    """Return the begin and end of hours such as "22:00-06:00"; raise ValueError."""
    match = _HOURS.fullmatch(text)
    try:
        if match is None:
            raise ValueError
        begin_h, begin_m, end_h, end_m = (int(part) for part in match.groups())
        return time(begin_h, begin_m), time(end_h % 24, end_m)
    except ValueError:
        raise ValueError(f'hours must look like "22:00-06:00", not {text!r}') from None


def waiting_for(conditions: Conditions, readings: Readings, now: datetime) -> str | None:
    """Return which condition keeps the device from working, and until when; None when none."""
    unmet = (
        _hours(conditions.hours, now)
        or _power(conditions, readings)
        or _network(conditions, readings)
        or _machine(conditions, readings)
    )
    return unmet or None


def interrupted_by(conditions: Conditions, readings: Readings, now: datetime) -> str | None:
    """Return which condition stops a task that has begun; None when none does."""
    if not conditions.interrupt:
        return None
    # The task itself keeps the CPU busy and fills the disk.
    return waiting_for(replace(conditions, idle_below=0.0, min_disk_mb=0), readings, now)


def _hours(hours: tuple[str, ...], now: datetime) -> str:
    if not hours or any(_inside(window(text), now.time()) for text in hours):
        return ""
    opens = min(_next(window(text)[0], now) for text in hours)
    return f"hours: works {', '.join(hours)}; until {opens:%Y-%m-%d %H:%M}"


def _inside(span: tuple[time, time], moment: time) -> bool:
    begin, end = span
    if begin == end:
        return True
    return begin <= moment < end if begin < end else moment >= begin or moment < end


def _next(moment: time, now: datetime) -> datetime:
    today = now.replace(hour=moment.hour, minute=moment.minute, second=0, microsecond=0)
    return today if today > now else today + timedelta(days=1)


def _power(conditions: Conditions, readings: Readings) -> str:
    if conditions.charging and readings.charging is False:
        return "charging: the device runs on battery; until it has external power"
    charge = readings.battery_percent
    if charge is not None and charge < conditions.min_battery:
        return f"battery: {charge:.0f} %; until it has {conditions.min_battery:.0f} %"
    return ""


def _network(conditions: Conditions, readings: Readings) -> str:
    if conditions.unmetered and readings.metered:
        return "unmetered: the network costs by the byte; until a free one is up"
    return ""


def _machine(conditions: Conditions, readings: Readings) -> str:
    degrees = readings.temperature_c
    if conditions.max_temperature and degrees is not None and degrees > conditions.max_temperature:
        return f"temperature: {degrees:.0f} °C; until below {conditions.max_temperature:.0f} °C"
    if conditions.idle_below and readings.busy >= conditions.idle_below:
        return (
            f"idle: {readings.busy:.0%} of the CPU is busy; until below {conditions.idle_below:.0%}"
        )
    free_mb = readings.disk_free_bytes // 2**20
    if free_mb < conditions.min_disk_mb:
        return f"disk: {free_mb} MB free; until {conditions.min_disk_mb} MB are"
    return ""
