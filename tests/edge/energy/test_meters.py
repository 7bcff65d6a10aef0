"""Meters over a sysfs tree as the kernel lays it out."""

from pathlib import Path

import psutil
import pytest
from skerry_edge.energy import find_meter
from skerry_edge.energy.meters import ModelMeter, PowerMeter, RaplMeter


class Time:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def write(root: Path, files: dict[str, str | int]) -> None:
    for name, value in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")


def test_rapl_adds_packages_and_survives_a_wrap(tmp_path: Path) -> None:
    zone = "class/powercap/intel-rapl:"
    write(
        tmp_path,
        {
            f"{zone}0/name": "package-0",
            f"{zone}0/energy_uj": 1_000_000,
            f"{zone}0/max_energy_range_uj": 5_000_000,
            f"{zone}1/name": "package-1",
            f"{zone}1/energy_uj": 0,
            f"{zone}1/max_energy_range_uj": 5_000_000,
            f"{zone}0:0/name": "core",  # a part of package-0: not counted twice
            f"{zone}0:0/energy_uj": 0,
        },
    )
    meter = find_meter(idle_w=1, busy_w=2, sys=tmp_path)
    assert meter.source == "rapl"
    write(tmp_path, {f"{zone}0/energy_uj": 3_000_000, f"{zone}1/energy_uj": 500_000})
    assert meter.joules() == pytest.approx(2.5)
    write(tmp_path, {f"{zone}0/energy_uj": 500_000})  # from 3 past 5 to 0.5
    assert meter.joules() == pytest.approx(5.0)


def test_the_platform_zone_covers_all_others(tmp_path: Path) -> None:
    for number, name in enumerate(("package-0", "psys")):
        zone = f"class/powercap/intel-rapl:{number}"
        write(
            tmp_path,
            {f"{zone}/name": name, f"{zone}/energy_uj": 0, f"{zone}/max_energy_range_uj": 10**9},
        )
    meter = RaplMeter.find(tmp_path)
    assert meter is not None
    write(tmp_path, {"class/powercap/intel-rapl:0/energy_uj": 7_000_000})
    assert meter.joules() == 0
    write(tmp_path, {"class/powercap/intel-rapl:1/energy_uj": 9_000_000})
    assert meter.joules() == pytest.approx(9)


def test_an_ina_gives_volts_times_amperes(tmp_path: Path) -> None:
    chip = "class/hwmon/hwmon2"
    write(
        tmp_path,
        {f"{chip}/name": "ina3221", f"{chip}/in1_input": 5000, f"{chip}/curr1_input": 800},
    )
    clock = Time()
    meter = find_meter(idle_w=1, busy_w=2, sys=tmp_path, clock=clock)
    assert meter.source == "hwmon"
    clock.now = 10  # 5 V x 0.8 A = 4 W
    assert meter.joules() == pytest.approx(40)
    write(tmp_path, {f"{chip}/curr1_input": 1600})
    clock.now = 20  # from 4 W to 8 W
    assert meter.joules() == pytest.approx(100)


def test_a_temperature_chip_is_no_power_sensor(tmp_path: Path) -> None:
    write(tmp_path, {"class/hwmon/hwmon0/name": "coretemp", "class/hwmon/hwmon0/temp1_input": 4})
    assert find_meter(idle_w=1, busy_w=2, sys=tmp_path).source == "estimated"


def test_a_battery_counts_while_it_is_drained(tmp_path: Path) -> None:
    supply = "class/power_supply/BAT0"
    write(
        tmp_path,
        {
            f"{supply}/type": "Battery",
            f"{supply}/status": "Discharging",
            f"{supply}/current_now": 500_000,
            f"{supply}/voltage_now": 12_000_000,
        },
    )
    clock = Time()
    meter = find_meter(idle_w=1, busy_w=2, sys=tmp_path, clock=clock)
    assert meter.source == "battery"
    clock.now = 10
    assert meter.joules() == pytest.approx(60)
    write(tmp_path, {f"{supply}/status": "Charging"})
    clock.now = 20
    assert meter.joules() == pytest.approx(90)  # half way from 6 W to none


def test_a_gap_is_not_guessed_at() -> None:
    clock = Time()
    meter = PowerMeter("hwmon", lambda: 5.0, clock)
    clock.now = 3600
    assert meter.joules() == 0
    clock.now = 3610
    assert meter.joules() == pytest.approx(50)


def test_the_model_lies_between_idle_and_busy() -> None:
    clock = Time()
    meter = ModelMeter(idle_w=2.0, busy_w=6.0, clock=clock)
    before = psutil.cpu_times()
    while sum(psutil.cpu_times()) - sum(before) < 0.2:
        sum(range(1000))
    clock.now = 10
    assert meter.source == "estimated"
    assert 20 < meter.joules() <= 60
