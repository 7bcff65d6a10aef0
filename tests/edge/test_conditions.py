"""When a device works: each condition alone, and what it says while it waits."""

from datetime import datetime

import pytest
from skerry_edge.conditions import Conditions, Readings, interrupted_by, waiting_for

NOON = datetime(2026, 3, 4, 12, 0)


@pytest.mark.parametrize(
    ("conditions", "readings", "says"),
    [
        (Conditions(), Readings(busy=1, charging=False, metered=True, battery_percent=1), None),
        (Conditions(charging=True), Readings(charging=False), "charging"),
        (Conditions(charging=True), Readings(charging=True), None),
        (Conditions(charging=True), Readings(charging=None), None),
        (Conditions(min_battery=50), Readings(battery_percent=49), "battery: 49 %; until it has"),
        (Conditions(min_battery=50), Readings(battery_percent=None), None),
        (Conditions(unmetered=True), Readings(metered=True), "unmetered"),
        (Conditions(unmetered=True), Readings(metered=None), None),
        (Conditions(max_temperature=70), Readings(temperature_c=71), "temperature: 71 °C; until"),
        (Conditions(max_temperature=70), Readings(temperature_c=70), None),
        (Conditions(idle_below=0.3), Readings(busy=0.3), "idle: 30% of the CPU is busy"),
        (Conditions(idle_below=0.3), Readings(busy=0.29), None),
        (Conditions(min_disk_mb=10), Readings(disk_free_bytes=9 * 2**20), "disk: 9 MB free"),
    ],
)
def test_a_condition_holds_or_says_why(
    conditions: Conditions, readings: Readings, says: str | None
) -> None:
    found = waiting_for(conditions, readings, NOON)
    assert found is None if says is None else found is not None and found.startswith(says)


@pytest.mark.parametrize(
    ("hour", "minute", "until"),
    [
        (22, 0, None),
        (23, 59, None),
        (0, 0, None),
        (5, 59, None),
        (6, 0, "2026-03-04 12:30"),
        (12, 29, "2026-03-04 12:30"),
        (12, 30, None),
        (13, 0, "2026-03-04 22:00"),
    ],
)
def test_hours_say_until_when(hour: int, minute: int, until: str | None) -> None:
    conditions = Conditions(hours=("22:00-06:00", "12:30-13:00"))
    found = waiting_for(conditions, Readings(), NOON.replace(hour=hour, minute=minute))
    assert found is None if until is None else found is not None and found.endswith(until)


def test_what_a_task_does_itself_does_not_interrupt_it() -> None:
    strict = Conditions(idle_below=0.2, min_disk_mb=100, min_battery=30, interrupt=True)
    busy = Readings(busy=1.0, disk_free_bytes=0, battery_percent=50)
    assert waiting_for(strict, busy, NOON) is not None
    assert interrupted_by(strict, busy, NOON) is None
    empty = Readings(battery_percent=10)
    assert interrupted_by(strict, empty, NOON) is not None
    assert interrupted_by(Conditions(min_battery=30), empty, NOON) is None


def test_the_next_opening_may_be_tomorrow() -> None:
    found = waiting_for(Conditions(hours=("01:00-02:00",)), Readings(), NOON)
    assert found == "hours: works 01:00-02:00; until 2026-03-05 01:00"


@pytest.mark.parametrize("text", ["", "22-06", "25:00-06:00", "22:00", "22:61-23:00", "a:b-c:d"])
def test_hours_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="hours must look like"):
        Conditions(hours=(text,))
