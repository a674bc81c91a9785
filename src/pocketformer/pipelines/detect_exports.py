"""`detect export`: a trained detector in, a verified file for deployment out."""

import copy
import io
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from pocketformer import files
from pocketformer.dense.detection.checkpoint import TASK, Trained, load_detector
from pocketformer.dense.detection.detector import Detector
from pocketformer.dense.detection.pictures import fitted, open_image, padded, to_input
from pocketformer.dense.detection.places import find
from pocketformer.dense.fused import FusedBackbone
from pocketformer.deploy import check_target, exporter_of
from pocketformer.deploy.facts import Facts, architecture_name, companion, write_facts
from pocketformer.deploy.formats.onnx import OPSET, describe, finish
from pocketformer.deploy.plain import by_itself, plain, plain_network
from pocketformer.deploy.quiet import converting
from pocketformer.errors import WorkError, first_line
from pocketformer.pipelines.detect_verification import Found, inner, results, verify, watched
from pocketformer.pipelines.facts import channels, data_fingerprint
from pocketformer.pipelines.images import find_images
from pocketformer.progress import stage
from pocketformer.runtimes.worker import Worker

_IMAGES = 8  # to verify on


class FusedDetector(nn.Module):
    """One image (1, 3, *size) to boxes (N, 4) in its px, labels from 1 on, scores, and masks (N, 1, 28, 28); then to
    the values between its parts."""

    def __init__(self, detector: Detector, size: tuple[int, int]):
        super().__init__()
        self.detector, self.size = plain_network(copy.deepcopy(detector).cpu()).eval(), size
        backbone = self.detector.pyramid.backbone
        backbone.network.set_input_size(size)
        self.detector.pyramid.backbone = FusedBackbone(backbone)
        self.results, self.names = results(detector), [*results(detector), *inner(detector)]
        self.eval()

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found: dict[str, torch.Tensor] = {}

        def note(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            found.update(values)
            return values

        with watched(self.detector, note):
            found.update(self.detector(image, (self.size,))[0])
        return tuple(found[name] for name in self.names)


@by_itself()
def export_detector(
    checkpoint: str,
    out: Path,
    size: tuple[int, int] | None,
    source: str,
    licence: str | None = None,
    opset: int | None = None,
) -> dict:
    """Writes the whole detector, its backbone fused, as ONNX for single images of `size`.

    Run on images of `source` and compared with PyTorch; on a mismatch, or where nothing is found in them, `WorkError`
    and no file.
    """
    exporter_of("onnx", "float32", opset=opset)
    check_target(out, "onnx")
    trained = load_detector(Path(checkpoint))
    size = size or tuple(-(-side // 32) * 32 for side in trained.size)
    images = _images(trained, size, Path(source))
    with stage("export and verify"), files.whole(out, companion(out)) as temporary:
        fused = FusedDetector(trained.model, size)
        whole = _convert(fused, images[:1], opset or OPSET)
        results_alone(whole, fused.results, temporary)
        finish(temporary, facts := _facts(trained, size, fused.results, checkpoint, licence))
        write_facts(temporary, facts)
        found = verify(trained.model, images, _ran(whole, temporary, images, fused))
        details, count = describe(temporary), temporary.stat().st_size
    about = {"path": str(out), "format": "onnx", "details": details, "bytes": count}
    return {**about, "input": [1, 3, *size], "outputs": fused.results, "verified": asdict(found)}


def _facts(trained: Trained, size: tuple[int, int], outputs: list[str], path: str, licence: str | None) -> Facts:
    """Of a file for images of `size`; `path`: of the trained folder."""
    return Facts(
        task=TASK,
        architecture=architecture_name(trained.model.pyramid.backbone.network.architecture),
        size=size,
        classes=tuple(trained.classes.values()),
        first_label=1,
        framing="fit",
        interpolation="bilinear",
        outputs=tuple(outputs),
        **channels(trained.normalisation, 3),
        licence=licence,
        fingerprint=data_fingerprint(path),
        depth=trained.depth.recorded().get("depth"),
    )


def _images(trained: Trained, size: tuple[int, int], source: Path) -> torch.Tensor:
    """The first few of val, or of a folder of images: resized to fit, padded below and on the right."""
    place = (find(source, "val") or find(source, "test") or find(source, None)) if source.is_dir() else None
    folder = source if place is None else place[1]
    found = []
    for path in list(find_images([str(folder)]).values())[:_IMAGES]:
        image = open_image(path, depth=trained.depth)
        shown = fitted((image.height, image.width), size)
        scale = min(1.0, size[0] / shown[0], size[1] / shown[1])  # a tall image in a wide input
        shown = (max(1, int(shown[0] * scale)), max(1, int(shown[1] * scale)))
        placed = torch.zeros(3, *size)
        placed[:, : shown[0], : shown[1]] = to_input(image, shown, trained.normalisation)
        found.append(placed)
    return plain(padded(found, 1))


@converting("PyTorch's ONNX exporter")
def _convert(module: FusedDetector, example: torch.Tensor, opset: int) -> onnx.ModelProto:
    """By the exporter that traces: torchvision's heads are written for it, and the other one refuses boxes whose number
    depends on the image."""
    buffer = io.BytesIO()
    free = {name: {0: "objects"} for name in (*module.results, "class_logits", "box_deltas")}
    free["proposals"] = {0: "proposals"}
    given = {"input_names": ["image"], "output_names": module.names, "dynamic_axes": free}
    torch.onnx.export(module, (example,), buffer, opset_version=opset, dynamo=False, **given)
    return onnx.load_from_string(buffer.getvalue())


def results_alone(model: onnx.ModelProto, names: list[str], path: Path) -> None:
    """The same graph, with no output but these."""
    alone = onnx.ModelProto()
    alone.CopyFrom(model)
    del alone.graph.output[:]
    alone.graph.output.extend(output for output in model.graph.output if output.name in names)
    onnx.save(alone, path)
    onnx.checker.check_model(str(path), full_check=True)


def _ran(whole: onnx.ModelProto, path: Path, images: torch.Tensor, fused: FusedDetector) -> list[Found]:
    """What the file finds in the images, and the inner values of the graph that it was cut from.

    `WorkError` where the two graphs do not find the same to the bit."""
    with Worker() as worker, tempfile.TemporaryDirectory() as folder:
        onnx.save(whole, inspected := Path(folder) / "whole.onnx")
        what = "export refused: ONNX Runtime crashed over the file"
        found, alone = (worker.call(_run, str(file), images.numpy(), what=what) for file in (inspected, path))
    for one, other in zip(found, alone, strict=True):
        if not all(np.array_equal(a, b) for a, b in zip(one, other, strict=False)):
            raise WorkError("export refused: without the inner values among its outputs the file finds something else")
    return [dict(zip(fused.names, one, strict=True)) for one in found]


def _run(path: str, images: np.ndarray) -> list[list[np.ndarray]]:
    """In the worker's process: all outputs, image by image."""
    import onnxruntime

    try:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return [session.run(None, {"image": image[None]}) for image in images]
    except Exception as error:  # the runtime's exceptions share no base of their own
        raise WorkError(f"export refused: ONNX Runtime cannot run the file ({first_line(error)})") from None
