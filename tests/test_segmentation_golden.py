"""Maps of the backbone for segmentation against the official one's, and its way with attention biases beside ours."""

import hashlib
import math

import numpy as np
import torch
import torch.nn.functional as F

from pocketformer import create_model
from pocketformer.dense.backbone import Backbone
from pocketformer.models.bias import AttentionBias
from pocketformer.models.checkpoints import load_checkpoint
from test_golden import golden, weights_of

torch.set_num_threads(1)

TABLE = ".attention_biases"


def official(folder) -> Backbone:
    """Built for 512 px with the official weights: of the two tables that each attention of theirs has, the classifier's
    is never read; the one for 512 px takes its place."""
    weights = weights_of(golden("efficientformerv2_s0_seg_512x512"))
    tables = {name.removesuffix("_seg"): t for name, t in weights.items() if name.endswith(f"{TABLE}_seg")}
    assert len(tables) == 5  # two in the third stage, one between, two in the fourth
    weights = {name: t for name, t in weights.items() if TABLE not in name} | tables
    torch.save(weights, folder / "seg.pth")
    backbone = Backbone(create_model("efficientformerv2_s0", num_classes=0, distilled=False), 512)
    load_checkpoint(backbone.network, folder / "seg.pth", resolution=512)
    return backbone.eval().double()


def picture(data: dict, width: int) -> torch.Tensor:
    x = np.random.default_rng(7).standard_normal((1, 3, 512, width)).astype(np.float32)
    assert hashlib.sha256(x.tobytes()).hexdigest() == str(data["input_sha256"])
    return torch.from_numpy(x).double()


def check(data: dict, maps: list[torch.Tensor]) -> None:
    for j, y in enumerate(maps, start=1):
        assert tuple(y.shape) == tuple(data[f"feat{j}_shape"])
        wanted = torch.from_numpy(data[f"feat{j}_chmean_f64"])
        torch.testing.assert_close(y.mean((2, 3)), wanted, rtol=0, atol=1e-9)
        std = float(data[f"feat{j}_std"])
        assert math.isclose(float(y.std(correction=0)), std, rel_tol=1e-5)
        first = torch.from_numpy(data[f"feat{j}_first16"]).double()
        torch.testing.assert_close(y.flatten()[:16], first, rtol=0, atol=1e-5 * max(std, 1))


def as_published(self: AttentionBias, grid) -> torch.Tensor:
    """Theirs: the matrix gathered for 512 px, resized bicubically as if it were an image."""
    matrix = self.table[:, self.index]
    queries, keys = (math.prod(-(-side // s) for side in grid) for s in (self.query_stride, self.key_stride))
    return F.interpolate(matrix[None], size=(queries, keys), mode="bicubic", align_corners=False)[0]


@torch.no_grad()
def test_maps_are_theirs_where_no_bias_is_resized(tmp_path):
    data = golden("efficientformerv2_s0_seg_512x512")
    check(data, official(tmp_path)(picture(data, 512)))


@torch.no_grad()
def test_elsewhere_maps_are_theirs_with_their_biases_and_others_with_ours(tmp_path, monkeypatch):
    """A departure: theirs interpolates over the flattened positions, where the rows of a wider grid do not line up, so
    that their bias is no function of the offset any more; ours is one at any size. With these made-up weights, whose
    attention is nearly uniform, maps differ by 1e-4 (third stage) and 5e-4 (fourth) of their spread."""
    data = golden("efficientformerv2_s0_seg_512x704")
    backbone, x = official(tmp_path), picture(data, 704)
    ours = backbone(x)
    bias = next(m for m in backbone.modules() if isinstance(m, AttentionBias) and m.query_stride == m.key_stride == 1)
    resampled = bias((16, 22))
    with monkeypatch.context() as patch:
        patch.setattr(AttentionBias, "forward", as_published)
        theirs = backbone(x)
        check(data, theirs)
        resized = bias((16, 22))
    for j in (0, 1):  # no attention before the third stage
        assert torch.equal(ours[j], theirs[j])
    apart = [float((a - b).std() / b.std()) for a, b in zip(ours, theirs, strict=True)]
    assert 3e-5 < apart[2] < 3e-4
    assert 2e-4 < apart[3] < 2e-3
    # Of one offset, (0, 1): the same number wherever the query is, or not.
    places = torch.arange(16 * 22).view(16, 22)
    pairs = places[:, :-1].flatten(), places[:, 1:].flatten()
    assert resampled[:, *pairs].std(1).max() < 1e-12
    assert resized[:, *pairs].std(1).max() > 0.05  # of a table with std 0.1
