"""The day's account: throttles, midnight, restarts."""

from pathlib import Path

import pytest
from skerry_edge.config import read_config
from skerry_edge.energy import Budget, Throttle
from skerry_protos.errors import ConfigError

DAY = 86400.0


class Joules:
    """A meter that says what it is told."""

    source = "estimated"

    def __init__(self) -> None:
        self.total = 0.0

    def joules(self) -> float:
        return self.total


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "energy.json"


def test_throttles_as_the_day_runs_out(file: Path) -> None:
    meter, now = Joules(), [DAY * 10 + 100]
    budget = Budget(meter, file, daily_j=1000, now=lambda: now[0])
    seen = []
    for total in (500, 800, 900, 1000):
        meter.total = total
        budget.update()
        seen.append(budget.throttle)
    assert seen == [Throttle.NONE, Throttle.FRUGAL, Throttle.SCARCE, Throttle.SPENT]
    assert "1000 of 1000 J used (estimated), new at 1970-01-12 00:00 UTC" in budget.why()


def test_midnight_gives_a_new_day_and_a_clock_set_back_does_not(file: Path) -> None:
    meter, now = Joules(), [DAY * 10 + 100]
    budget = Budget(meter, file, daily_j=1000, now=lambda: now[0])
    meter.total = 1000
    budget.update()
    now[0] -= 2 * DAY
    budget.update()
    seen = [budget.throttle]
    now[0] = DAY * 11 + 1
    meter.total = 1010
    assert budget.update() == pytest.approx(10)
    assert [*seen, budget.throttle] == [Throttle.SPENT, Throttle.NONE]


def test_a_restart_goes_on_with_the_day(file: Path) -> None:
    meter, now = Joules(), [DAY * 10 + 100]
    budget = Budget(meter, file, daily_j=1000, now=lambda: now[0])
    meter.total = 950
    budget.update()
    later = Budget(Joules(), file, daily_j=1000, now=lambda: now[0] + 50)
    assert later.update() == pytest.approx(950)
    assert later.throttle is Throttle.SCARCE


@pytest.mark.parametrize("text", ["", "{", '{"day": "x"}', '{"day": 1e999, "joules": 3}', "[]"])
def test_an_unreadable_account_begins_anew(file: Path, text: str) -> None:
    file.write_text(text)
    assert Budget(Joules(), file, now=lambda: DAY).update() == 0


def test_no_budget_never_throttles(file: Path) -> None:
    meter = Joules()
    budget = Budget(meter, file)
    meter.total = 1e12
    budget.update()
    assert budget.throttle is Throttle.NONE and budget.why() == ""


def test_a_negative_budget_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="daily_j must be 0"):
        read_config(tmp_path, {"energy": {"daily_j": -1}})
