"""Opening many model files side by side, of which some may crash the runtime."""

import random
from collections.abc import Callable, Mapping
from pathlib import Path

from pocketformer.devices.bench import Bench
from pocketformer.errors import UserError, WorkError


def open_all(
    bench: Bench, files: Mapping[str, Path], seed: int = 0, progress: Callable[[int, str], None] | None = None
) -> dict[str, Exception]:
    """Loads and runs each file once; the errors of those that cannot be, by name.

    After a failure the process starts afresh and all others are opened again: what a crash takes with it, or
    leaves behind, must not show in their times. `progress(done, name)` is called after each file.
    """
    import numpy as np

    failed: dict[str, Exception] = {}
    # Of equal files the one loaded last is 2 to 5 % faster: a random place for each.
    order = random.Random(seed).sample(sorted(files), len(files))
    whole = False
    while not whole:
        whole = True
        for done, name in enumerate([name for name in order if name not in failed], 1):
            try:
                shape = bench.load(name, files[name])
                bench.run(name, np.zeros(shape, bench.dtype(name)), (shape[0],))
            except (UserError, WorkError) as error:
                failed[name], whole = error, False
                bench.close()
                break
            if progress is not None:
                progress(done, name)
    return failed
