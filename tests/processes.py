"""Jobs of several processes, as torchrun starts them: forked from a server that has imported what is slow to import,
and meeting in a store of this process. Shared by the tests of distributed work."""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path

import pytest
from torch.distributed import TCPStore

server = multiprocessing.get_context("forkserver")


def process(function: Callable, *arguments: object) -> multiprocessing.Process:
    """Started: forked from a server that has imported what is slow to import, and sums in one order."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)]))
        server.set_forkserver_preload(["preloaded"])
        forkserver.ensure_running()
    started = server.Process(target=function, args=arguments)
    started.start()
    return started


class Team:
    """Processes that run `function(*arguments)`, each with its rank; their output is in `folder`."""

    def __init__(self, folder: Path, count: int, function: Callable, *arguments):
        folder.mkdir(parents=True, exist_ok=True)
        self.outputs = [folder / f"rank_{rank}" for rank in range(count)]
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.members = []
        for rank, output in enumerate(self.outputs):
            environment = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": count,
                "LOCAL_WORLD_SIZE": count,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": self._store.port,
                "TORCHELASTIC_USE_AGENT_STORE": True,  # it is kept by who started the processes
            }
            given = (environment if count > 1 else {}, output, function, arguments)
            self.members.append(process(_work, *given))

    def end(self, seconds: float = 120) -> list[int]:
        """Their exit codes, -9 of the killed."""
        until = time.monotonic() + seconds
        for member in self.members:
            member.join(max(0, until - time.monotonic()))
            assert not member.is_alive(), f"took more than {seconds} s: {self.errors}"
        return [member.exitcode for member in self.members]

    def kill(self, *ranks: int) -> None:
        for rank in ranks or range(len(self.members)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.members[rank].pid, signal.SIGKILL)

    def wait(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        until = time.monotonic() + seconds
        while not condition():
            assert all(member.is_alive() for member in self.members), self.errors
            assert time.monotonic() < until
            time.sleep(0.005)

    @property
    def errors(self) -> str:
        return "".join(output.with_suffix(".err").read_text() for output in self.outputs)

    @property
    def said(self) -> str:
        return "".join(output.with_suffix(".out").read_text() for output in self.outputs)


def _work(environment: dict, output: Path, function: Callable, arguments: tuple) -> None:
    import torch

    os.environ.update({name: str(value) for name, value in environment.items()})
    for suffix, descriptor in ((".out", 1), (".err", 2)):
        with open(output.with_suffix(suffix), "w") as file:
            os.dup2(file.fileno(), descriptor)
    torch.set_num_threads(1)
    function(*arguments)


def command(*arguments: object) -> None:
    """The command line."""
    from pocketformer.cli.main import main

    sys.argv = ["pocketformer", *map(str, arguments)]
    main()
