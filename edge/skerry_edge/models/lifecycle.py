"""The life of an update on a device, as a table: all of it can be read here and a test walks it."""

from enum import StrEnum

from skerry_protos.artefacts import Phase


class Event(StrEnum):
    """What may happen to an update."""

    TRUSTED = "trusted"  # its metadata verified, and it is for this device
    REFUSE = "refuse"  # a signature, hash, version, clock or profile is wrong
    HERE = "here"  # the artefact is in the idle slot, verified
    KEPT = "kept"  # the release that served before is asked for again
    PASSED = "passed"  # the self-test
    FAIL = "fail"  # the self-test
    HEALTHY = "healthy"  # the trial is over
    UNWELL = "unwell"  # crashes, wrong answers, slow, too large


_P, _E = Phase, Event

NEXT: dict[tuple[Phase, Event], Phase] = {
    (_P.VERIFYING, _E.TRUSTED): _P.FETCHING,
    (_P.VERIFYING, _E.REFUSE): _P.REFUSED,
    (_P.FETCHING, _E.HERE): _P.TESTING,
    (_P.FETCHING, _E.KEPT): _P.LIVE,
    (_P.FETCHING, _E.REFUSE): _P.REFUSED,
    (_P.TESTING, _E.PASSED): _P.TRIAL,
    (_P.TESTING, _E.FAIL): _P.FAILED,
    (_P.TRIAL, _E.HEALTHY): _P.LIVE,
    (_P.TRIAL, _E.UNWELL): _P.ROLLED_BACK,
    (_P.LIVE, _E.UNWELL): _P.ROLLED_BACK,
}


def advance(phase: Phase, event: Event) -> Phase:
    """Return the phase after `event`; an event out of place changes nothing."""
    return NEXT.get((phase, event), phase)
