"""For all tests: signals act as they do at a terminal, and Hypothesis leaves the clock alone.

Slow tests begin only while SKERRY_TESTS_UNTIL (seconds since 1970) lies ahead, where it is set.
"""

import os
import signal
import time

import pytest
from hypothesis import settings

UNTIL = float(os.environ.get("SKERRY_TESTS_UNTIL") or "inf")


def pytest_configure() -> None:
    """Have SIGINT heard by the programs that tests start, and let examples take their time.

    Tests run beside each other, so how long one example took says nothing. And a shell starts its
    background jobs with SIGINT ignored; what they start inherits that, and a Ctrl-C that a test
    sends would not arrive.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    settings.register_profile("beside others", deadline=None)
    settings.load_profile("beside others")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out a slow test that begins too late, and say so."""
    if item.get_closest_marker("slow") is not None and time.time() > UNTIL:
        pytest.skip("no time was left for it in this run (SKERRY_TESTS_UNTIL)")
