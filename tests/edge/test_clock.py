"""Deadlines are in a clock that nobody sets: neither here nor at the coordinator."""

import time

import pytest
from skerry_edge.clock import Clock
from skerry_protos import steady

YEAR_S = 366 * 86_400.0


def test_a_clock_that_is_set_moves_no_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    before, real = steady.unix_s(), time.time
    monkeypatch.setattr(time, "time", lambda: real() + YEAR_S)
    assert 0 <= steady.unix_s() - before < 60


def test_the_coordinators_clocks_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, real = Clock(), time.time
    assert not clock.known.is_set()
    clock.set(real() + YEAR_S, real() - YEAR_S)  # it was put right since the coordinator started
    assert clock.known.is_set()
    assert clock.now() - real() == pytest.approx(YEAR_S, abs=60)
    assert clock.deadlines() - real() == pytest.approx(-YEAR_S, abs=60)
    monkeypatch.setattr(time, "time", lambda: real() - YEAR_S)
    assert clock.deadlines() - real() == pytest.approx(-YEAR_S, abs=60)
    assert clock.offset_s == pytest.approx(2 * YEAR_S, abs=60)


def test_an_older_coordinator_has_one_clock() -> None:
    clock = Clock()
    clock.set(1e9)
    assert clock.deadlines() == pytest.approx(clock.now(), abs=1)
