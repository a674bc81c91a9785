"""`detect export`: a trained detector in, a verified file for deployment out."""

import copy
import io
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from pocketformer import files
from pocketformer.dense.detection.checkpoint import Trained, load_detector
from pocketformer.dense.detection.detector import Detector
from pocketformer.dense.detection.folders import locate
from pocketformer.dense.detection.pictures import fitted, open_image, padded, to_input
from pocketformer.dense.fused import FusedBackbone
from pocketformer.deploy import check_name
from pocketformer.deploy.formats.onnx import OPSET, describe
from pocketformer.deploy.quiet import converting
from pocketformer.errors import UserError, WorkError, first_line
from pocketformer.pipelines.images import find_images
from pocketformer.progress import stage
from pocketformer.runtimes.worker import Worker

_IMAGES = 8  # to verify on
_BOX, _SCORE, _MASK = 1e-3, 1e-3, 1e-2  # how far the same object may be off: share of the long side, and shares of 1
_AGREEMENT = 0.95  # of objects: where boxes overlap by just the threshold, rounding decides which of them stay

Found = list[np.ndarray]  # boxes, labels, scores, and masks where there are any


@dataclass(frozen=True)
class Agreement:
    """Objects of PyTorch's and of the file that have their like, and how far these are apart at most (px, shares)."""

    images: int
    objects: int
    agreement: float
    box: float
    score: float


class FusedDetector(nn.Module):
    """One image (1, 3, *size) to boxes (N, 4) in its px, labels from 1 on, scores, and masks (N, 1, 28, 28)."""

    def __init__(self, detector: Detector, size: tuple[int, int]):
        super().__init__()
        self.detector, self.size = copy.deepcopy(detector).float().cpu().eval(), size
        backbone = self.detector.pyramid.backbone
        backbone.network.set_input_size(size)
        self.detector.pyramid.backbone = FusedBackbone(backbone)
        self.names = names_of(detector)
        self.eval()

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = self.detector(image, (self.size,))[0]
        return tuple(found[name] for name in self.names)


def names_of(detector: Detector) -> list[str]:
    return ["boxes", "labels", "scores", *(["masks"] if detector.heads.masks else [])]


def export_detector(checkpoint: str, out: Path, size: tuple[int, int] | None, source: str) -> dict:
    """Writes the whole detector, its backbone fused, as ONNX for single images of `size`.

    Run on images of `source` and compared with PyTorch; on a mismatch, or where nothing is found in them, `WorkError`
    and no file.
    """
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; give the path of the file")
    check_name(out, "onnx")
    files.check_target(out)
    trained = load_detector(Path(checkpoint))
    size = size or tuple(-(-side // 32) * 32 for side in trained.size)
    images = _images(trained, size, Path(source))
    with stage("export and verify"), files.whole(out) as temporary:
        fused = FusedDetector(trained.model, size)
        _write(fused, images[:1], temporary, fused.names)
        found = _verify(trained.model, temporary, images)
        details, count = describe(temporary), temporary.stat().st_size
    about = {"path": str(out), "format": "onnx", "details": details, "bytes": count}
    return {**about, "input": [1, 3, *size], "outputs": fused.names, "verified": asdict(found)}


def _images(trained: Trained, size: tuple[int, int], source: Path) -> torch.Tensor:
    """The first few of val, or of a folder of images: resized to fit, padded below and on the right."""
    folder = locate(source, "val")[1] if (source / "annotations").is_dir() else source
    found = []
    for path in list(find_images([str(folder)]).values())[:_IMAGES]:
        image = open_image(path)
        shown = fitted((image.height, image.width), size)
        scale = min(1.0, size[0] / shown[0], size[1] / shown[1])  # a tall image in a wide input
        shown = (max(1, int(shown[0] * scale)), max(1, int(shown[1] * scale)))
        placed = torch.zeros(3, *size)
        placed[:, : shown[0], : shown[1]] = to_input(image, shown, trained.normalisation)
        found.append(placed)
    return padded(found, 1)


@converting("PyTorch's ONNX exporter")
def _write(module: nn.Module, example: torch.Tensor, path: Path, names: list[str]) -> None:
    """By the exporter that traces: torchvision's heads are written for it, and the other one refuses boxes whose number
    depends on the image."""
    buffer = io.BytesIO()
    free = {name: {0: "objects"} for name in names}
    given = {"input_names": ["image"], "output_names": names, "dynamic_axes": free}
    torch.onnx.export(module, (example,), buffer, opset_version=OPSET, dynamo=False, **given)
    path.write_bytes(buffer.getbuffer())
    onnx.checker.check_model(str(path), full_check=True)


def _verify(model: Detector, path: Path, images: torch.Tensor) -> Agreement:
    """Runs the file and compares all objects with those of the detector as it was trained."""
    size, names = tuple(images.shape[2:]), names_of(model)
    with torch.no_grad():
        found = [model(image[None], (size,))[0] for image in images]
    wanted = [[each[name].numpy() for name in names] for each in found]
    with Worker() as worker:
        got = worker.call(_run, str(path), images.numpy(), what="export refused: ONNX Runtime crashed over the file")
    agreed = compare(wanted, got, max(size), model.heads.score)
    if not agreed.objects:
        raise WorkError("export refused: nothing is found in the images, so that nothing can be verified; give others")
    if agreed.agreement < _AGREEMENT:
        raise WorkError(
            f"export refused: {agreed.agreement:.1%} of {agreed.objects} objects are the same as PyTorch's, "
            f"wanted are {_AGREEMENT:.0%}"
        )
    return agreed


def compare(wanted: list[Found], got: list[Found], side: int, threshold: float) -> Agreement:
    """Of each object the nearest of its class in the other list; those whose score is just the `threshold` are not
    counted. `side`: long one of the images, px."""
    objects = same = 0
    box = score = 0.0
    for pair in zip(wanted, got, strict=True):
        for mine, others in (pair, pair[::-1]):
            for row in np.flatnonzero(mine[2] > threshold + _SCORE):
                objects += 1
                like = np.flatnonzero(others[1] == mine[1][row])
                if not len(like):
                    continue
                apart = np.abs(others[0][like] - mine[0][row]).max(1)
                nearest = like[np.argmin(apart)]
                off = abs(float(others[2][nearest] - mine[2][row]))
                masks = np.abs(others[3][nearest] - mine[3][row]).max() if len(mine) > 3 else 0.0
                if apart.min() <= _BOX * side and off <= _SCORE and masks <= _MASK:
                    same, box, score = same + 1, max(box, float(apart.min())), max(score, off)
    return Agreement(len(wanted), objects, same / max(objects, 1), box, score)


def _run(path: str, images: np.ndarray) -> list[Found]:
    """In the worker's process: all outputs, image by image."""
    import onnxruntime

    try:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return [session.run(None, {"image": image[None]}) for image in images]
    except Exception as error:  # the runtime's exceptions share no base of their own
        raise WorkError(f"export refused: ONNX Runtime cannot run the file ({first_line(error)})") from None
