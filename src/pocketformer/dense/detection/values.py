"""Ids, numbers and boxes as files of annotations have them, whole or as text."""

import math
from typing import Any

from pocketformer.dense.detection.masks import Size

Box = tuple[float, float, float, float]  # left, top, width, height, px
SLACK = 1.0  # px by which a box may stand out: files round
_FAR = 0.1  # share of a side; what stands out by more may be a box of another form
_MANY = 0.1  # share of all boxes


def key(value: Any) -> str | None:
    """What ids are compared by, so that 1, 1.0 and "1" are the same; None: it can be none."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else None
    return str(value).strip() or None if isinstance(value, int | str) else None


def whole(text: str) -> int | None:
    """The number that an id is, if it is one."""
    try:
        found = int(text)
    except ValueError:
        return None
    return found if str(found) == text else None


def number(value: Any) -> float | None:
    """A finite one, also as text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def flag(value: Any) -> bool:
    """Whether an entry such as iscrowd is set; "0" and "false" as text are not."""
    if isinstance(value, str):
        return value.strip().lower() not in ("", "0", "false", "no")
    return bool(value)


def box_of(value: Any) -> Box | None:
    if not isinstance(value, list) or len(value) != 4:
        return None
    found = [number(v) for v in value]
    return None if None in found else tuple(found)


def side_of(value: Any) -> int | None:
    """A height or width, px."""
    found = number(value)
    return int(found) if found is not None and found > 0 and found == int(found) else None


def clipped(box: Box, size: Size) -> Box:
    """The part of it that is in the image; of no size or a negative one where none is. What stands out by less than
    `SLACK` is left as it is."""
    left, top, width, height = box
    right, bottom = left + width, top + height
    if left < size[1] and top < size[0] and right > 0 and bottom > 0:
        out = max(-left, -top, right - size[1], bottom - size[0])
        if out <= SLACK:
            return box
    left, top = max(left, 0.0), max(top, 0.0)
    return left, top, min(right, size[1]) - left, min(bottom, size[0]) - top


def strange(boxes: list[tuple[Box, Size]]) -> str | None:
    """What boxes look like that cannot all be meant as left, top, width and height in px; None: nothing is strange."""
    sound = [(box, size) for box, size in boxes if box[2] > 0 and box[3] > 0]
    if not sound:
        return None
    if all(box[0] + box[2] <= 1 and box[1] + box[3] <= 1 and min(size) > 2 for box, size in sound):
        return "all lie within 1 px: they look like shares of the image's sides, COCO's are in px"
    corners = all(
        box[2] > box[0] and box[3] > box[1] and box[2] <= size[1] + SLACK and box[3] <= size[0] + SLACK
        for box, size in sound
    )
    far = sum(box[0] + box[2] > (1 + _FAR) * size[1] or box[1] + box[3] > (1 + _FAR) * size[0] for box, size in sound)
    centres = all(
        max(0.5 * box[2] - box[0], 0.5 * box[2] + box[0] - size[1]) <= SLACK
        and max(0.5 * box[3] - box[1], 0.5 * box[3] + box[1] - size[0]) <= SLACK
        for box, size in sound
    )
    if centres and not corners and far >= max(2, _MANY * len(sound)):
        return (
            f"{far} of {len(sound)} reach far out of their images, but none would if they were given by their centres; "
            "COCO's are left, top, width, height"
        )
    if corners and far >= max(1, _MANY * len(sound)):
        return (
            f"{far} of {len(sound)} reach far out of their images, but none would if they were left, top, right, "
            "bottom; COCO's are left, top, width, height"
        )
    return None
