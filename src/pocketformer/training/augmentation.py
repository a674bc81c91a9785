"""How training images are varied, as one frozen value."""

import re
from dataclasses import dataclass

from pocketformer.errors import UserError

_RANDAUGMENT = re.compile(r"rand(-(m\d+|n[1-9]\d*|p[\d.]+|mstd[\d.]+|mmax\d+|inc[01]|tweights|t3aw?))+")


@dataclass(frozen=True)
class Augmentation:
    """Random resized crop (shares of the image area, aspect ratios), flip, erasing (a probability).

    `randaugment` is timm's configuration string, such as "rand-m9-mstd0.5-inc1" (empty: none). `repeats` is how
    many copies of an image, each varied in its own way, are next to each other in an epoch (repeated augmentation);
    epochs get no longer by it, so that each sees only that share of the images.
    """

    flip: bool = True
    scale: tuple[float, float] = (0.35, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    erase: float = 0.0
    randaugment: str = ""
    repeats: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UserError(f"augmentation scale is {self.scale}; it must be 0 < smallest <= largest <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise UserError(f"augmentation ratio is {self.ratio}; it must be 0 < smallest <= largest")
        if not 0 <= self.erase <= 1:
            raise UserError(f"augmentation erase is {self.erase}; it is a probability")
        if isinstance(self.repeats, bool) or not isinstance(self.repeats, int) or self.repeats < 1:
            raise UserError(f"augmentation repeats is {self.repeats!r}; it must be a whole number of at least 1")
        if self.randaugment and not _is_randaugment(self.randaugment):
            raise UserError(
                f"augmentation randaugment is {self.randaugment!r}; it must be timm's configuration of RandAugment, "
                "such as rand-m9-mstd0.5-inc1"
            )


def _is_randaugment(text: str) -> bool:
    # timm ignores sections that it does not know, so that a typing error would go unseen.
    if not isinstance(text, str) or not _RANDAUGMENT.fullmatch(text):
        return False
    from timm.data.auto_augment import rand_augment_transform

    try:
        rand_augment_transform(text)
    except Exception:  # timm refuses by assertions, and numbers by whatever reads them
        return False
    return True
