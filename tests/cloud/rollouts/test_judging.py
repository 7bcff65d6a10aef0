"""What a rollout does next: waves, soak, gates and deadlines as values in and a verdict out."""

from typing import Any

import pytest
from skerry_cloud.rollouts.judging import Member, Move, Verdict, judge
from skerry_cloud.rollouts.lifecycle import DeviceState as D
from skerry_cloud.rollouts.lifecycle import RolloutState as R
from skerry_cloud.rollouts.plan import Plan, draw
from skerry_protos.errors import ConfigError
from skerry_protos.messages import DeviceId

PLAN = Plan.parse({"waves": ["2", "100%"], "soak_s": 60, "wave_s": 600})


def members(*states: D, **fields: Any) -> list[Member]:
    return [
        Member(device=DeviceId(f"d{n}"), wave=0 if n < 2 else 1, state=state, **fields)
        for n, state in enumerate(states)
    ]


def verdict(state: R, *states: D, wave: int = 0, now: float = 0.0, **plan: Any) -> Verdict:
    wished = Plan.parse({**PLAN.to_json(), **plan})
    return judge(state, wished, members(*states), wave=wave, wave_at=0.0, now=now)


def test_a_wave_waits_for_all_its_devices_and_names_them() -> None:
    found = verdict(R.ROLLING, D.LIVE, D.ASKED, D.WAITING)
    assert found.move is Move.WAIT
    assert "d1" in found.why
    assert found.until == 600
    assert verdict(R.ROLLING, D.LIVE, D.LIVE, D.WAITING).move is Move.SETTLED


def test_a_wave_is_watched_before_the_next_begins() -> None:
    assert verdict(R.SOAKING, D.LIVE, D.LIVE, D.WAITING, now=59).move is Move.WAIT
    assert verdict(R.SOAKING, D.LIVE, D.LIVE, D.WAITING, now=60).move is Move.NEXT
    assert verdict(R.SOAKING, D.LIVE, D.LIVE, D.LIVE, wave=1, now=60).move is Move.DONE


def test_one_bad_device_is_too_many_unless_the_plan_says_otherwise() -> None:
    found = verdict(R.ROLLING, D.FAILED, D.ASKED, D.WAITING)
    assert found.move is Move.FAIL
    gates = {"max_failed": 0.5}
    assert verdict(R.ROLLING, D.FAILED, D.LIVE, D.WAITING, gates=gates).move is Move.SETTLED


def test_a_device_that_turns_bad_while_it_is_watched_fails_the_rollout() -> None:
    assert verdict(R.SOAKING, D.LIVE, D.FAILED, D.WAITING, now=61).move is Move.FAIL


def test_devices_that_do_not_answer_pause_it_at_the_deadline() -> None:
    found = verdict(R.ROLLING, D.LIVE, D.ASKED, D.WAITING, now=600)
    assert found.move is Move.PAUSE
    assert "missing: 1 devices: d1" in found.why
    enough = {"min_answered": 0.5}
    done = verdict(R.ROLLING, D.LIVE, D.ASKED, D.WAITING, now=600, gates=enough)
    assert done.move is Move.SETTLED


@pytest.mark.parametrize(
    ("readings", "health"),
    [
        ({"latency_p95_s": 0.2}, {"max_latency_p95_s": 0.1}),
        ({"accuracy": 0.8}, {"min_accuracy": 0.9}),
        ({"error_rate": 0.2}, {}),
        ({"memory_bytes": 2e9}, {"max_memory_mb": 100}),
        ({"energy_j": 3.0}, {"max_energy_j": 1}),
        ({"drift": 0.5}, {"max_drift": 0.2}),
        ({"crashes": 3}, {}),
    ],
)
def test_what_devices_report_is_a_gate(
    readings: dict[str, float], health: dict[str, float]
) -> None:
    plan = Plan.parse({**PLAN.to_json(), "health": health})
    good = judge(R.SOAKING, plan, members(D.LIVE, D.LIVE), wave=0, wave_at=0, now=1)
    assert good.move is Move.WAIT
    bad = members(D.LIVE, D.LIVE, readings=readings)
    assert judge(R.SOAKING, plan, bad, wave=0, wave_at=0, now=1).move is Move.FAIL


def test_slower_than_the_version_before_is_a_gate() -> None:
    plan = Plan.parse({**PLAN.to_json(), "gates": {"max_latency_ratio": 1.5}})
    slow = members(D.LIVE, D.LIVE, readings={"latency_p95_s": 0.2}, before={"latency_p95_s": 0.1})
    found = judge(R.SOAKING, plan, slow, wave=0, wave_at=0, now=1)
    assert found.move is Move.FAIL
    assert "2.00 times" in found.why


def test_waves_are_shares_numbers_and_selectors() -> None:
    fleet = {DeviceId(f"d{n}"): {"site": "lab"} if n == 7 else {} for n in range(20)}
    plan = Plan.parse({"waves": ["site=lab", "2", "50%", "100%"]})
    waves = draw("rollout-1", plan, fleet)
    assert waves[DeviceId("d7")] == 0
    counts = [sum(wave == n for wave in waves.values()) for n in range(4)]
    assert counts == [1, 1, 8, 10]
    assert draw("rollout-1", plan, fleet) == waves
    assert draw("rollout-2", plan, fleet) != waves


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        ({"waves": []}, "1 to 50 waves"),
        ({"waves": ["0%"]}, "no share"),
        ({"waves": ["120%"]}, "no share"),
        ({"wave": ["5%"]}, "did you mean 'waves'"),
        ({"gates": {"max_fail": 1}}, "did you mean 'gates.?max_failed'|max_failed"),
        ({"health": {"latency": 1}}, "no gate 'latency'"),
        ({"soak_s": "soon"}, "not a duration"),
        ({"on_failure": "shrug"}, "on_failure"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused_in_one_line(plan: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        Plan.parse(plan)
