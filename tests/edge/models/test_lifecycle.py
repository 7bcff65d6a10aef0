"""The life of an update on a device, walked whole."""

from itertools import product

from skerry_edge.models.lifecycle import NEXT, Event, advance
from skerry_protos.artefacts import BAD, SETTLED, Phase


def test_every_pair_leads_where_the_table_says_or_nowhere() -> None:
    for phase, event in product(Phase, Event):
        assert advance(phase, event) is NEXT.get((phase, event), phase)


def test_every_phase_is_reached_and_bad_ones_are_ends() -> None:
    reached, fresh = {Phase.VERIFYING}, {Phase.VERIFYING}
    while fresh:
        fresh = {after for (phase, _), after in NEXT.items() if phase in fresh} - reached
        reached |= fresh
    assert reached == set(Phase)
    assert not {phase for phase, _ in NEXT} & BAD
    assert BAD < SETTLED


def test_what_was_refused_never_serves() -> None:
    serving = {Phase.TRIAL, Phase.LIVE}
    ways = {phase for (phase, _), after in NEXT.items() if after in serving}
    assert ways == {Phase.FETCHING, Phase.TESTING, Phase.TRIAL}
