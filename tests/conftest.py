"""For all tests: signals act as they do at a terminal."""

import signal


def pytest_configure() -> None:
    """Have SIGINT heard by the programs that tests start.

    A shell starts its background jobs with SIGINT ignored; what they start inherits that, and a
    Ctrl-C that a test sends would not arrive.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
