"""Image files of a set, decoded, and resized as both papers' detectors see them."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import ExifTags, Image

from pocketformer.dense.detection.instances import PADDED_TO
from pocketformer.errors import UserError, WorkError
from pocketformer.training.decoding import upright, why_unreadable
from pocketformer.training.pixels import Normalisation

if TYPE_CHECKING:
    from pocketformer.dense.detection.coco import Picture

Size = tuple[int, int]
_CHUNK = 1024
_CHECKED_AT = 8  # JPEGs are checked at an eighth: all of the file is read, and little of it computed
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap the sides


def unreadable(
    folder: Path, pictures: Sequence["Picture"], workers: int, progress: Callable[[int, int], None] | None = None
) -> dict[int, str]:
    """{id of a picture: why it cannot be used}, of every one looked at once."""

    def look(picture: "Picture") -> str | None:
        try:
            with Image.open(folder / picture.file) as image:
                sizes = _sizes(image)
                if picture.size not in sizes:
                    return f"{sizes[0][0]} x {sizes[0][1]} px, not {picture.size[0]} x {picture.size[1]}"
                image.draft(None, tuple(max(1, side // _CHECKED_AT) for side in image.size))
                image.load()
        except MemoryError:
            raise
        except Exception as error:  # decoders raise whatever they like
            return why_unreadable(error)
        return None

    bad: dict[int, str] = {}
    with ThreadPoolExecutor(workers) if workers > 0 else nullcontext() as pool:
        for first in range(0, len(pictures), _CHUNK):
            part = pictures[first : first + _CHUNK]
            for picture, why in zip(part, (pool.map if pool else map)(look, part), strict=True):
                if why is not None:
                    bad[picture.number] = why
            if progress:
                progress(first + len(part), len(pictures))
    return bad


def _sizes(image: Image.Image) -> list[Size]:
    """Height and width as it is shown, and as it is stored."""
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) in _TURNED
    stored = image.height, image.width
    return [stored[::-1], stored] if turned else [stored]


def open_image(path: Path, size: Size | None = None) -> Image.Image:
    """RGB, upright; as stored where only that is of the `size` that its annotations are for. `WorkError` if it cannot
    be read."""
    try:
        with Image.open(path) as image:
            if size is not None and size != _sizes(image)[0]:
                image.load()
                image.getexif().pop(ExifTags.Base.Orientation, None)
            found = upright(image)
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
