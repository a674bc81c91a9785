"""Mask R-CNN on a small set in COCO's format: does the loss fall, and are the figures pycocotools'?

    python benchmarks/detection.py --data coco_cc_free.zip

The set (33 images to train on, 27 of val, COCO's 80 categories; a `.zip`, or a folder) is far too small to rank
anything: AP on val says nothing of the backbone. What is shown: the loss
of each epoch; COCO's twelve figures on both splits by faster-coco-eval, beside pycocotools' on the same predictions;
and what is found in some images of train, drawn on them in --work (drawn.png), where finished trainings are kept and
taken up again, and on grey in benchmarks/results/detection.png (the photographs are not ours to pass on).

About 12 s an epoch on one core at the default size; `--epochs 60 --size 320 512` is what a person would run.
"""

import argparse
import copy
import json
import os
import platform
import zipfile
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pocketformer import files
from pocketformer.dense.detection.checkpoint import load_detector
from pocketformer.dense.detection.coco import CocoSet
from pocketformer.dense.detection.drawing import drawn
from pocketformer.dense.detection.evaluation import FIGURES, detect, tables
from pocketformer.dense.detection.folders import Reader
from pocketformer.dense.detection.heads import Heads
from pocketformer.dense.detection.pictures import open_image
from pocketformer.dense.detection.places import locate
from pocketformer.dense.recipe import DenseRecipe
from pocketformer.pipelines.detecting import DetectSettings, train_detector
from pocketformer.progress import stage
from pocketformer.runs import seconds_by_stage, versions

RESULTS = Path(__file__).parent / "results" / "detection.json"
HEADS = Heads(width=96, hidden=256, mask_convs=2, proposals=300, samples=128)
_SHOWN, _TILE = 6, (320, 240)  # images, and their largest width and height, px


def unpacked(data: Path, work: Path) -> Path:
    if data.is_dir():
        return data
    folder = work / "data"
    if not folder.is_dir():
        with zipfile.ZipFile(data) as archive, files.whole(folder) as temporary:
            archive.extractall(temporary)
    return folder


def by_pycocotools(truth: Path, images: CocoSet, results: list[dict]) -> dict[str, dict[str, float]]:
    if not results:  # which it does not take
        raise SystemExit("nothing was found in the images: train for longer (--epochs)")
    found = {}
    for kind, name in (("boxes", "bbox"), ("masks", "segm")):
        with redirect_stdout(StringIO()):
            own = COCO(str(truth))
            counted = COCOeval(own, own.loadRes(copy.deepcopy(results)), name)
            counted.params.imgIds = sorted(p.number for p in images.pictures)
            counted.evaluate()
            counted.accumulate()
            counted.summarize()
        found[kind] = dict(zip(FIGURES, counted.stats.tolist(), strict=True))
    return found


def curve(metrics: Path, steps_per_epoch: int) -> dict[str, list[float]]:
    """Mean of each loss over the steps of each epoch."""
    lines = files.Lines.read(metrics)
    parts = [lines[i : i + steps_per_epoch] for i in range(0, len(lines), steps_per_epoch)]
    names = [name for name in lines[0] if name.startswith("loss")]
    return {name: [round(sum(x[name] for x in part) / len(part), 4) for part in parts] for name in names}


def sheet(images: CocoSet, results: list[dict], threshold: float, path: Path, grey: Path) -> list[dict]:
    """The images with most found, side by side in one PNG, and the same without the photographs; their sources and
    licences."""
    chosen = [r for r in results if r["score"] >= threshold]
    counts = {p.number: sum(r["image_id"] == p.number for r in chosen) for p in images.pictures}
    rows = sorted(range(len(images)), key=lambda row: (-min(counts[images.pictures[row].number], 6), row))[:_SHOWN]
    tiles, labels = {path: [], grey: []}, list(images.classes)
    for row in rows:
        number = images.pictures[row].number
        mine = [{**r, "category": images.classes[r["category_id"]]} for r in chosen if r["image_id"] == number]
        photograph = open_image(images.path(row))
        for target, image in ((path, photograph), (grey, Image.new("RGB", photograph.size, "#606060"))):
            picture = drawn(image, mine, [labels.index(r["category_id"]) for r in mine])
            picture.thumbnail(_TILE)
            tiles[target].append(picture)
    for target, pictures in tiles.items():
        canvas = Image.new("RGB", (3 * _TILE[0], 2 * _TILE[1]))
        for place, tile in enumerate(pictures):
            canvas.paste(tile, (_TILE[0] * (place % 3), _TILE[1] * (place // 3)))
        with files.whole(target) as temporary:
            canvas.quantize(128).save(temporary, format="PNG", optimize=True)
    content = files.read_json(Path(images.source))
    licences = {entry["id"]: entry.get("name") for entry in content.get("licenses", [])}
    about = {entry["id"]: entry for entry in content["images"]}
    found = []
    for row in rows:
        entry = about[images.pictures[row].number]
        licence = licences.get(entry.get("license"))
        found.append({"file": entry["file_name"], "source": entry.get("flickr_url"), "licence": licence})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--architecture", default="efficientformerv2_s0")
    parser.add_argument("--init", help="weights to start from")
    parser.add_argument("--epochs", type=float, default=20)
    parser.add_argument("--size", type=int, nargs=2, default=(160, 256), metavar=("SHORT", "LONG"))
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--threshold", type=float, default=0.3, help="lowest score of what is drawn")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/detection"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    data = unpacked(args.data, args.work)
    recipe = DenseRecipe.detection(
        epochs=args.epochs,
        batch_size=args.batch_size,
        size=tuple(args.size),
        learning_rate=args.learning_rate,
        milestones=(0.7 * args.epochs, 0.9 * args.epochs),
        warmup_steps=20,
        layer_scale=0.5 if args.init is None else 1e-5,
        checkpoint_every=20,
    )
    settings = DetectSettings(
        architecture=args.architecture, data=str(data), recipe=recipe, heads=HEADS, init=args.init, workers=0
    )
    run = args.work / f"{args.architecture}-{args.size[0]}-{args.epochs:g}"
    trained = train_detector(settings, run)
    detector = load_detector(run)
    row = {"epochs": args.epochs, "images": {}, "figures": {}, "difference to pycocotools": 0.0}
    for split in ("train", "val"):
        images = Reader()(*locate(data, split))
        with stage(f"detect in {split}", len(images)) as progress:
            results = detect(detector.model, images, detector.size, detector.normalisation, 0, progress.update)
        own, other = tables(images, results, True), by_pycocotools(locate(data, split)[0], images, results)
        apart = max(abs(own[kind][name] - other[kind][name]) for kind in own for name in FIGURES)
        row["difference to pycocotools"] = max(row["difference to pycocotools"], apart)
        row["images"][split], row["figures"][split] = len(images), own
        row.setdefault("found", {})[split] = len(results)
        if split == "train":
            row["drawn"] = sheet(images, results, args.threshold, args.work / "drawn.png", args.out.with_suffix(".png"))
            steps = len(images.for_training()) // args.batch_size
    row["parameters"], row["loss by epoch"] = trained["parameters"], curve(run / "metrics.jsonl", steps)
    again = f"--epochs {args.epochs:g} --size {args.size[0]} {args.size[1]}"
    result = {
        "command": f"python benchmarks/detection.py --data {args.data.name} {again}",
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": args.threads,
        "versions": versions(),
        "architecture": args.architecture,
        "recipe": recipe.to_dict(),
        "heads": HEADS.to_dict(),
        "training_seconds": round(seconds_by_stage(run)["detector"], 1),
        **row,
    }
    files.write_json(args.out, result)
    print(json.dumps({"loss": row["loss by epoch"]["loss"], **row["figures"]}, indent=1))
    print(f"largest difference to pycocotools: {row['difference to pycocotools']:.1e}")


if __name__ == "__main__":
    main()
