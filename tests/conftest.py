"""For all tests: the command line as a fixture; Ctrl-C reaches the processes that they start; quicker converters."""

import signal

import pytest

from asking import Answer, answered
from quick_converters import hasten


def pytest_configure() -> None:
    # What a shell starts in the background ignores the signal, and so would all that it starts in turn.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _quick_converters() -> None:
    hasten()


@pytest.fixture
def cli(capfd):
    """Runs a command in this process."""

    def call(*arguments: object) -> Answer:
        capfd.readouterr()
        code = answered(arguments)
        said = capfd.readouterr()
        return Answer(code, said.out, said.err)

    return call
