"""For all tests: Ctrl-C reaches the processes that they start, also where the tests run in the background."""

import signal


def pytest_configure() -> None:
    # What a shell starts in the background ignores the signal, and so would all that it starts in turn.
    signal.signal(signal.SIGINT, signal.default_int_handler)
