"""A network trained at one size, used at another: what becomes of its attention biases?

    pocketformer train --architecture benchmarks/imagenette64.json --data imagenette --epochs 20 --out runs/imagenette64
    python benchmarks/resampling.py runs/imagenette64 --data imagenette --sizes 80 96

Accuracy on test at the trained size and at others, with the biases (a) re-sampled as tables of offsets, our way,
(b) gathered and resized as N x N matrices, bicubically, as in the official code for detection and segmentation,
and (c) dropped. The same images at every size, from the same stored pixels; weights and norms are those of training.
"""

import argparse
import json
import os
import platform
from pathlib import Path

import torch
import torch.nn.functional as F

from pocketformer.models.bias import AttentionBias
from pocketformer.pipelines.images import open_images
from pocketformer.runs import versions
from pocketformer.training.batches import normalise
from pocketformer.training.checkpoint import load_model


def resized_matrix(bias: AttentionBias):
    """The official downstream way: the gathered matrix, as an image of `heads` channels, resized."""
    matrix = bias.table[:, bias.index].detach()

    def forward(grid):
        queries, keys = (-(-grid[0] // s) * -(-grid[1] // s) for s in (bias.query_stride, bias.key_stride))
        return F.interpolate(matrix[None], size=(queries, keys), mode="bicubic", align_corners=False)[0]

    return forward


def tables(model):
    model.set_dynamic()


def matrices(model):
    for module in model.modules():
        if isinstance(module, AttentionBias):
            module.forward = resized_matrix(module)


def dropped(model):
    model.set_dynamic()
    for module in model.modules():
        if isinstance(module, AttentionBias):
            torch.nn.init.zeros_(module.table)


WAYS = {"table re-sampled": tables, "matrix resized": matrices, "dropped": dropped}


@torch.inference_mode()
def outcome(model, split, size):
    """Images stored at the largest size, averaged down (antialiased) to `size`."""
    right = []
    for rows in torch.arange(len(split)).split(128):
        images, labels = split.take(rows)
        images = F.interpolate(images.float(), size=size, mode="bilinear", antialias=True, align_corners=False)
        right.append(model(normalise(images.round().to(torch.uint8))).argmax(1) == labels)
    return torch.cat(right)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a folder of `pocketformer train`")
    parser.add_argument("--data", required=True)
    parser.add_argument("--sizes", type=int, nargs="+", required=True)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    _, config = load_model(args.run)
    native = config["resolution"][0]
    largest = max(args.sizes)
    data = open_images(args.data, (largest, largest), 0, "refuse", 2)
    tables = {name: p.std().item() for name, p in load_model(args.run)[0].named_parameters() if "bias.table" in name}
    rows = []
    for size in (native, *args.sizes):
        found = {}
        for way, apply in WAYS.items():
            model, _ = load_model(args.run)
            with torch.no_grad():
                apply(model)
            found[way] = outcome(model, data.test, (size, size))
        base = found["table re-sampled"]
        for way, right in found.items():
            row = {"size": size, "biases": way, "correct": int(right.sum()), "images": len(right)}
            row["accuracy"] = round(100 * right.float().mean().item(), 2)
            gap = (base.float() - right.float()) * 100
            row["re_sampled_minus_this"] = round(gap.mean().item(), 2)
            row["half_interval"] = round(1.96 * gap.std().item() / len(gap) ** 0.5, 2)
            rows.append(row)
            print(row)
    sizes = " ".join(map(str, args.sizes))
    about = {"command": f"python benchmarks/resampling.py {args.run} --data {Path(args.data).name} --sizes {sizes}"}
    about |= {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count(), "versions": versions()}
    about |= {"trained_at": native, "standard_deviation_of_tables": tables, "rows": rows}
    if args.out:
        args.out.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
