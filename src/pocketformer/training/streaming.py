"""Images that stay where they are and are decoded when they are asked for."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from PIL import Image

from pocketformer.errors import UserError, WorkError
from pocketformer.training.colours import UNKNOWN, see, upright
from pocketformer.training.decoding import each, refuse_bad, skipped, to_pixels
from pocketformer.training.depths import Depth
from pocketformer.training.opening import why_unreadable
from pocketformer.training.remarks import Remarks, is_plain
from pocketformer.training.sources import Found

T = TypeVar("T")
_CHECKED_AT = 8  # a first look decodes JPEGs at an eighth: all of the file is read, and little of it computed


class StreamedImages:
    """The images of a source with random access; stands where a `Split` in memory has a tensor.

    Attributes:
        shape: (N, 3, S_h, S_w) that the images would have in memory.
        bad: rows met so far that cannot be read (row -> why). Nothing depends on it but what is told.
        workers: threads that decode where many are asked for at once; 0: the calling one.
        depth: the rule by which images of more than 8 bits are decoded.

    Reading raises `WorkError` in one line for an image that cannot be read, unless `accept_bad`, and always for one
    that is no longer there: a folder that vanishes in the middle of the work is not a set of broken images.
    """

    def __init__(
        self, found: Found, size: tuple[int, int], accept_bad: bool = False, workers: int = 0, depth: Depth = UNKNOWN
    ):
        # Not `found` itself: this goes to other processes.
        self.source, self.place, self._load, self.name = found.source, found.place, found.load, found.name
        self.size, self.accept_bad, self.workers, self.depth = size, accept_bad, workers, depth
        self.shape = (len(found), 3, *size)
        self.bad: dict[int, str] = {}

    def whole(self, row: int) -> Image.Image | None:
        """The image at its own size, upright RGB; None if it cannot be read, which is accepted."""
        return self._read(row, partial(upright, depth=self.depth))

    def pixels(self, row: int) -> np.ndarray | None:
        """The image as it would be in memory, uint8 (3, S_h, S_w); None as for `whole`."""
        return self._read(row, partial(to_pixels, size=self.size, depth=self.depth))

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


@dataclass(frozen=True)
class Look:
    """What a first look at images tells: their median short side in px (0: none could be read), the rule for those of
    more than 8 bits, and what there is to say of the pixels."""

    median_side: int
    depth: Depth
    remarks: Remarks


def preflight(
    found: Found,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
    depth: Depth = UNKNOWN,
    limit: int | None = None,
) -> Look:
    """Looks once at every image of a source with random access, or with `limit` at so many, spread evenly.

    Of all images those that cannot be read are refused with `UserError` that counts and names them; of some they are
    left out. `workers`: threads; 0: the calling one. What `depth` does not say is decided by what is seen.
    """
    rows = range(0, len(found), 1 if limit is None else max(1, len(found) // limit))[:limit]
    bad = dict(found.bad)
    sides = np.zeros(len(found), np.int64)
    remarks = Remarks()

    def look(row: int) -> None:
        try:
            image = found.load(row).image
            sides[row] = min(image.size)
            image.draft(None, tuple(max(1, side // _CHECKED_AT) for side in image.size))
            seen = see(image, depth)
            remarks.add(row, seen, is_plain(*zip(*seen.image.getextrema(), strict=True)))
        except (UserError, MemoryError):
            raise
        except Exception as error:
            sides[row], bad[row] = 0, why_unreadable(error)

    each(look, iter(rows), workers, len(rows), progress)
    if limit is None:
        refuse_bad(found, bad)
    remarks.looked = int(np.count_nonzero(sides))
    decided = depth.within(remarks.extent)
    median = int(np.median(sides[sides > 0])) if remarks.looked else 0
    return Look(median, decided, remarks)
