"""Networks that are built without random numbers: nothing of the memory's old contents is left in what was loaded."""

import pytest
import torch

from layouts import V1, V2, saved, tiny
from pocketformer import create_model
from pocketformer.models.blank import Blank
from pocketformer.training.checkpoint import load_file, load_model, save_model

DESIGNED = V2.with_design(norm="gn", token_mixer="dwconv", stem="large-kernel", downsampling=("dual-path",) * 3)


@pytest.fixture
def poison():
    """What torch leaves as the memory was is NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)


def tensors(model) -> dict[str, torch.Tensor]:
    return dict((*model.named_parameters(), *model.named_buffers()))


@pytest.mark.parametrize("architecture", [V1, V2, DESIGNED], ids=["V1", "V2", "designed"])
def test_only_what_is_drawn_is_left_out(architecture, poison):
    drawn, state = create_model(architecture, 5), torch.get_rng_state()
    with Blank():
        blank = create_model(architecture, 5)
    assert torch.equal(torch.get_rng_state(), state)
    for (name, tensor), other in zip(tensors(blank).items(), tensors(drawn).values(), strict=True):
        assert (tensor.shape, tensor.dtype, tensor.requires_grad) == (other.shape, other.dtype, other.requires_grad)
        assert tensor.isnan().all() or torch.equal(tensor, other), name
    assert blank.head.weight.isnan().all()
    blank.load_state_dict(drawn.state_dict())
    assert all(map(torch.equal, tensors(blank).values(), tensors(drawn).values()))


@pytest.mark.parametrize("architecture", [V1, V2, DESIGNED], ids=["V1", "V2", "designed"])
def test_folders_and_files_are_loaded_whole(architecture, tmp_path, poison):
    source = tiny(architecture, resolution=224)
    save_model(tmp_path / "folder", source, tuple("abcde"), {})
    exported = source.export_checkpoint("pocketformer")
    file = saved(tmp_path / "a.pth", {n: t for n, t in exported.items() if not n.endswith("num_batches_tracked")})
    state = torch.get_rng_state()
    for found, _ in (load_model(tmp_path / "folder"), load_file(file, architecture)):
        assert not found.training
        assert list(tensors(found)) == list(tensors(source))
        assert all(map(torch.equal, tensors(found).values(), tensors(source).values()))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_head_that_is_not_the_files_is_drawn(tmp_path, poison, capsys):
    other = {n: t for n, t in tiny(V2, classes=7).state_dict().items() if n.startswith("head_dist")}
    file = saved(tmp_path / "a.pth", tiny(V2).state_dict() | other)
    found, _ = load_file(file, V2)
    assert "head_dist of 7 classes was dropped" in "".join(capsys.readouterr())
    assert all(tensor.isfinite().all() for tensor in tensors(found).values())
