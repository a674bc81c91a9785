"""Images that stay where they are and are decoded when they are asked for."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from itertools import islice
from typing import TypeVar

import numpy as np
from PIL import Image

from pocketformer.errors import UserError, WorkError
from pocketformer.training.decoding import refuse_bad, skipped, to_pixels, upright, why_unreadable
from pocketformer.training.sources import Found, Load

T = TypeVar("T")
_CHUNK = 1024
_CHECKED_AT = 8  # preflight decodes JPEGs at an eighth: all of the file is read, and little of it computed


class StreamedImages:
    """The images of a source with random access; stands where a `Split` in memory has a tensor.

    Attributes:
        shape: (N, 3, S_h, S_w) that the images would have in memory.
        bad: rows met so far that cannot be read (row -> why). Nothing depends on it but what is told.
        workers: threads that decode where many are asked for at once; 0: the calling one.

    Reading raises `WorkError` in one line for an image that cannot be read, unless `accept_bad`, and always for one
    that is no longer there: a folder that vanishes in the middle of the work is not a set of broken images.
    """

    def __init__(self, found: Found, size: tuple[int, int], accept_bad: bool = False, workers: int = 0):
        # Not `found` itself: this goes to other processes.
        self.source, self.place, self._load, self.name = found.source, found.place, found.load, found.name
        self.size, self.accept_bad, self.workers = size, accept_bad, workers
        self.shape = (len(found), 3, *size)
        self.bad: dict[int, str] = {}

    def whole(self, row: int) -> Image.Image | None:
        """The image at its own size, upright RGB; None if it cannot be read, which is accepted."""
        return self._read(row, upright)

    def pixels(self, row: int) -> np.ndarray | None:
        """The image as it would be in memory, uint8 (3, S_h, S_w); None as for `whole`."""
        return self._read(row, partial(to_pixels, size=self.size))

    def note(self) -> str | None:
        """What to tell of unreadable images that were met; None if there were none."""
        return skipped(self.name, self.bad) if self.bad else None

    def _read(self, row: int, decode: Callable[[Image.Image], T]) -> T | None:
        if row in self.bad:
            return None
        try:
            return decode(self._load(row).image)
        except (UserError, WorkError, MemoryError):
            raise
        except Exception as error:  # decoders raise whatever they like
            self._refuse_vanished(row, error)
            if not self.accept_bad:
                raise WorkError(
                    f"{self.source}: {self.name(row)} cannot be read as an image ({why_unreadable(error)}); put a "
                    "readable one there and run the same command to continue, or pass --bad-images skip"
                ) from None
            self.bad[row] = why_unreadable(error)
            return None

    def _refuse_vanished(self, row: int, error: Exception) -> None:
        # Errors of the file system have a number, those of decoders have none.
        if not isinstance(error, OSError) or error.errno is None or isinstance(error, PermissionError):
            return
        again = "put it back and run the same command to continue"
        if self.place is not None and not self.place.exists():
            raise WorkError(f"{self.place}: the images were there when the work began and are gone; {again}") from None
        raise WorkError(
            f"{self.source}: {self.name(row)} was there when the work began and cannot be read now "
            f"({error.strerror}); {again}"
        ) from None


def preflight(found: Found, workers: int = 0, progress: Callable[[int, int], None] | None = None) -> int:
    """Looks once at every image of a source with random access; returns their median short side in px.

    Raises `UserError` that counts and names those that cannot be read. `workers`: threads; 0: the calling one.
    """
    bad = dict(found.bad)
    sides = np.zeros(len(found), np.int64)

    def look(job: tuple[int, Load]) -> None:
        row, load = job
        try:
            image = load().image
            sides[row] = min(image.size)
            image.draft(None, tuple(max(1, side // _CHECKED_AT) for side in image.size))
            image.load()
        except (UserError, MemoryError):
            raise
        except Exception as error:
            bad[row] = why_unreadable(error)

    jobs, done = found.jobs(), 0
    with ThreadPoolExecutor(workers) if workers > 0 else nullcontext() as pool:
        while chunk := list(islice(jobs, _CHUNK)):
            for _ in pool.map(look, chunk) if pool else map(look, chunk):
                pass
            done += len(chunk)
            if progress:
                progress(done, len(found))
    refuse_bad(found, bad)
    return int(np.median(sides))
