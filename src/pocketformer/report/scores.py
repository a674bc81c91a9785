"""What trainings other than a classifier's came to: the subnets of a supernet, classes of a segmenter, objects of a
detector."""

from pocketformer.report.reading import Record, part
from pocketformer.report.sections import card
from pocketformer.report.wording import count, is_number, percent, safe

_HEADS = {"semantic segmentation": "Semantic FPN", "detection": "feature pyramid, and heads for boxes"}
_SUBNETS = {"largest": "largest subnet", "smallest": "smallest subnet trained", "random": "a random subnet"}
_FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")


def head_of(record: Record) -> str | None:
    """What stands on the stages of a segmenter or a detector, in words; None: a classifier's head."""
    task = part(record.network, "task")
    if task not in _HEADS:
        return None
    masks = " and masks" if part(record.network, "heads", "masks") else ""
    classes = len(part(record.network, "classes", default=[]))
    return f"{_HEADS[task]}{masks}, {classes} class{'es' * (classes != 1)}"


def cards(record: Record) -> str:
    """The one figure of a segmenter or a detector."""
    results = record.results
    split = f"{results.get('split', 'test')} split, {count(results.get('images'))} images"
    if is_number(results.get("mIoU")):
        return f"<div class='cards'>{card(percent(results['mIoU']), 'Mean IoU', split)}</div>"
    kinds = {"bbox": "Box AP", "segm": "Mask AP"}
    found = [(title, part(results, "test", kind, "AP")) for kind, title in kinds.items()]
    shown = "".join(card(percent(value), title, split) for title, value in found if is_number(value))
    return f"<div class='cards'>{shown}</div>" if shown else ""


def table(record: Record) -> str:
    """Accuracies of a supernet's subnets, IoU of each class, or COCO's figures."""
    if record.subnets:
        heads = ("Subnet", "Accuracy, norms re-calibrated", "With the supernet's own norms")
        rows = []
        for name, title in _SUBNETS.items():
            ways = [part(record.subnets, name, way, "accuracy") for way in ("recalibrated", "before")]
            if any(map(is_number, ways)):
                rows.append((title, *map(percent, ways)))
        return _table(heads, rows) + "<p class='muted'>On the search split, with the supernet's weights.</p>"
    if iou := part(record.results, "iou", default={}):
        pixels = part(record.results, "pixels", default={})
        known = sorted(iou.items(), key=lambda pair: pair[1] if is_number(pair[1]) else 2)
        rows = [(name, percent(v) if is_number(v) else "not seen", count(pixels.get(name))) for name, v in known]
        return _table(("Class, worst first", "IoU", "Pixels"), rows)
    test = part(record.results, "test", default={})
    rows = [
        (title, *(percent(part(test, kind, f)) for f in _FIGURES))
        for kind, title in (("bbox", "Boxes"), ("segm", "Masks"))
        if isinstance(test.get(kind), dict)
    ]
    return _table(("COCO's figures", *_FIGURES), rows) if rows else ""


def _table(heads: tuple, rows: list[tuple]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th scope='col'>{safe(title)}</th>" for title in heads)
    body = "".join(
        f"<tr><th scope='row'>{safe(first)}</th>{''.join(f'<td>{safe(cell)}</td>' for cell in cells)}</tr>"
        for first, *cells in rows
    )
    return f"<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
