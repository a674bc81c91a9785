"""Image files of a set, decoded, and resized as both papers' detectors see them."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pocketformer.dense import orientation
from pocketformer.dense.detection.instances import PADDED_TO
from pocketformer.errors import UserError, WorkError
from pocketformer.training import opening
from pocketformer.training.colours import UNKNOWN
from pocketformer.training.decoding import upright, why_unreadable
from pocketformer.training.depths import Depth
from pocketformer.training.pixels import Normalisation

Size = tuple[int, int]
_CHUNK = 1024
_CHECKED_AT = 8  # JPEGs are checked at an eighth: all of the file is read, and little of it computed


@dataclass(frozen=True)
class Header:
    """What a file says of its image: height and width as `stored`, and EXIF's orientation."""

    stored: Size
    turn: int

    @property
    def shown(self) -> Size:
        return orientation.shown(self.stored, self.turn)


def look_at(
    paths: Sequence[Path], workers: int, progress: Callable[[int, int], None] | None = None
) -> list[Header | str]:
    """Of each file its header, or why it cannot be used; all of it is read."""

    def look(path: Path) -> Header | str:
        try:
            with opening.open_image(path) as image:
                return Header(*orientation.frame(image, _decode)[1:])
        except MemoryError:
            raise
        except Exception as error:  # decoders raise whatever they like
            return why_unreadable(error)

    found: list[Header | str] = []
    with ThreadPoolExecutor(workers) if workers > 0 else nullcontext() as pool:
        for first in range(0, len(paths), _CHUNK):
            found += (pool.map if pool else map)(look, paths[first : first + _CHUNK])
            if progress:
                progress(len(found), len(paths))
    return found


def _decode(image: Image.Image) -> None:
    image.draft(None, tuple(max(1, side // _CHECKED_AT) for side in image.size))
    image.load()


def open_image(path: Path, size: Size | None = None, stored: bool = False, depth: Depth = UNKNOWN) -> Image.Image:
    """RGB, upright; as `stored`, without EXIF's turn, where that is said or only that is of the `size` that its
    annotations are for. `WorkError` if it cannot be read."""
    try:
        with opening.open_image(path) as image:
            found, own, turn = orientation.frame(image, lambda image: upright(image, depth))
            if turn != 1 and (stored or size not in (None, orientation.shown(own, turn))):
                found = orientation.undone(found, turn)
    except (UserError, MemoryError):
        raise
    except Exception as error:
        raise WorkError(f"{path} cannot be read as an image ({why_unreadable(error)})") from None
    if size is not None and found.size != size[::-1]:
        raise WorkError(f"{path} is no longer of the size that its annotations are for")
    return found


def fitted(size: Size, box: Size) -> Size:
    """Height and width of an image of `size`, resized to the short and long side of `box`, its shape kept."""
    scale = min(max(box) / max(size), min(box) / min(size))
    return max(1, int(size[0] * scale + 0.5)), max(1, int(size[1] * scale + 0.5))


def to_input(image: Image.Image, size: Size, normalisation: Normalisation, flipped: bool = False) -> torch.Tensor:
    """float32 (3, H, W), channels last: resized (bilinear, antialiased), flipped where asked for, normalised."""
    resized = image if image.size == size[::-1] else image.resize(size[::-1], Image.Resampling.BILINEAR)
    pixels = np.array(resized)
    found = torch.from_numpy(pixels[:, ::-1].copy() if flipped else pixels).to(torch.float32)
    mean, std = (torch.tensor(values) for values in normalisation)
    return found.div_(255).sub_(mean).div_(std).permute(2, 0, 1)


def padded(images: Sequence[torch.Tensor], multiple: int = PADDED_TO) -> torch.Tensor:
    """Images (3, h, w) as one batch (B, 3, H, W), channels last: zeros on the right and below, to a multiple."""
    height, width = (max(image.shape[i] for image in images) for i in (1, 2))
    height, width = (-(-side // multiple) * multiple for side in (height, width))
    batch = torch.zeros(len(images), height, width, 3).permute(0, 3, 1, 2)
    for place, image in zip(batch, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return batch
