"""For all tests: signals act as they do at a terminal, and Hypothesis leaves the clock alone."""

import signal

from hypothesis import settings


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
