"""Any input size: attention biases as functions of the offset, re-sampled tables, changing sizes."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perturbed import perturb
from pocketformer import Architecture, create_model
from pocketformer.errors import UserError
from pocketformer.models.bias import AttentionBias, gather, offset_index, resample

torch.set_num_threads(1)

SIDES = st.integers(1, 9)
GRIDS = st.tuples(SIDES, SIDES)


def table(grid, function, heads=2):
    """A table (heads, h * w) of a function of the offset as a share of the image."""
    y, x = (torch.arange(n, dtype=torch.float64) / n for n in grid)
    return torch.stack([function(y[:, None], x[None], head) for head in range(heads)]).flatten(1)


# --- the table of offsets


@given(GRIDS, st.integers(1, 3), st.integers(1, 3))
def test_each_query_and_key_get_the_entry_of_their_offset(grid, query_stride, key_stride):
    """Against plain loops, and the gathering against plain indexing, gradients too."""
    values = torch.randn(2, grid[0] * grid[1], requires_grad=True)
    places = [(y, x) for y in range(grid[0]) for x in range(grid[1])]
    queries = [p for p in places if p[0] % query_stride == p[1] % query_stride == 0]
    keys = [p for p in places if p[0] % key_stride == p[1] % key_stride == 0]
    want = torch.tensor([[abs(q[0] - k[0]) * grid[1] + abs(q[1] - k[1]) for k in keys] for q in queries])
    assert torch.equal(offset_index(grid, query_stride, key_stride), want)
    weight = torch.randn(2, *want.shape)
    gradients = []
    for found in (gather(values, want), values[:, want]):
        gradients.append(torch.autograd.grad((found * weight).sum(), values)[0])
    torch.testing.assert_close(*gradients)
    assert torch.equal(gather(values, want), values[:, want])


@given(GRIDS)
def test_the_same_grid_is_the_same_table(grid):
    values = torch.randn(3, grid[0] * grid[1])
    assert resample(values, grid, grid) is values


def test_mixed_precision_leaves_the_table_as_it_is():
    values = torch.randn(3, 49)
    with torch.autocast("cpu", torch.bfloat16):
        found = resample(values, (7, 7), (9, 12))
    assert torch.equal(found, resample(values, (7, 7), (9, 12)))
    assert resample(values.to("meta"), (7, 7), (9, 12)).shape == (3, 108)  # where there is no autocast


@pytest.mark.parametrize("factor", [1.5, 2.0])
@pytest.mark.parametrize("grid", [(14, 14), (10, 14), (8, 6)])
def test_a_smooth_function_of_the_offset_keeps_its_values(grid, factor):
    """Waves, and decays with a cusp at offset zero: largest error below 2 % of their range."""

    def function(y, x, head):
        return torch.cos(2 * y + head) * torch.exp(-(1 + head) * x) + 0.3 * y * x

    new = tuple(round(n * factor) for n in grid)
    want = table(new, function)
    found = resample(table(grid, function), grid, new)
    assert (found - want).abs().max() < 0.02 * (want.max() - want.min())
    # numpy's linear interpolation, an independent yardstick with the same meaning of an offset, is no better
    y, x = (np.arange(n) * old / n for n, old in zip(new, grid, strict=True))
    rows = np.array(
        [
            [np.interp(x, range(grid[1]), row) for row in head]
            for head in table(grid, function).unflatten(1, grid).numpy()
        ]
    )
    linear = np.array([[np.interp(y, range(grid[0]), column) for column in head.T] for head in rows])
    assert (found - want).abs().max() < np.abs(linear.transpose(0, 2, 1).reshape(2, -1) - want.numpy()).max()


@given(GRIDS, GRIDS)
def test_parabolas_are_exact_on_any_grid(grid, new):
    """Of at least three entries; fewer leave constants exact."""
    degree = 2 if min(grid) >= 3 else 0

    def function(y, x, head):
        return (1 + head) * (y - 0.3) ** degree + (x + 0.1) ** degree

    torch.testing.assert_close(resample(table(grid, function), grid, new), table(new, function), rtol=0, atol=1e-9)


@given(GRIDS, GRIDS, st.integers(1, 2))
@settings(max_examples=50)
def test_on_every_grid_the_bias_is_a_function_of_the_offset(grid, new, stride):
    """Also on non-square grids, where resizing the N x N matrix mixes rows."""
    bias = AttentionBias(2, grid, stride)
    torch.nn.init.normal_(bias.table)
    bias.dynamic = True
    matrix = bias(new).detach()
    entries = offset_index(new, stride)
    for entry in entries.unique():
        same = matrix[:, entries == entry]
        assert torch.equal(same, same[:, :1].expand_as(same))


@given(GRIDS, st.sampled_from([2, 3]))
def test_a_coarser_grid_takes_every_nth_entry(grid, factor):
    fine = (grid[0] * factor, grid[1] * factor)
    values = torch.randn(2, fine[0] * fine[1])
    assert torch.equal(resample(values, fine, grid), values.unflatten(1, fine)[:, ::factor, ::factor].flatten(1))


# --- networks

NAMES = ("efficientformer_l1", "efficientformerv2_s0")


@pytest.fixture(scope="module", params=NAMES)
def network(request):
    return perturb(create_model(request.param, 10, 224)).eval()


def picture(model, size, n=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, model.in_chans, *size, generator=generator)


@torch.no_grad()
@pytest.mark.parametrize("size", [(240, 240), (208, 208), (97, 131), (32, 32), (448, 96)], ids=str)
def test_sizes_from_call_to_call_are_those_of_models_set_to_them(network, size):
    """`dynamic` against `set_input_size` against a model built for that size with re-sampled tables."""
    x = picture(network, size)
    dynamic = copy.deepcopy(network)
    dynamic.set_dynamic()
    y = dynamic(x)
    fixed = copy.deepcopy(network)
    fixed.set_input_size(size)
    assert fixed.resolution == size
    torch.testing.assert_close(fixed(x), y, rtol=0, atol=0)
    built = create_model(network.architecture, 10, size).eval()
    built.load_state_dict(fixed.state_dict())
    assert torch.equal(built(x), y)
    maps = dynamic.forward_intermediates(x, intermediates_only=True)
    grids = [b.grid for b in network.architecture.blocks(size) if b.kind in ("ffn", "head")]
    assert {tuple(m.shape[2:]) for m in maps} == set(grids)
    home = picture(network, (224, 224))
    assert torch.equal(dynamic(home), network(home))  # at its own size: bit for bit the plain path


@torch.no_grad()
def test_a_dynamic_network_keeps_no_state_between_sizes(network):
    dynamic = copy.deepcopy(network)
    dynamic.set_dynamic()
    small, home = picture(network, (160, 96)), picture(network, (224, 224))
    before = dynamic(small), dynamic(home)
    state = perturb(copy.deepcopy(network), seed=5).state_dict()
    dynamic.load_state_dict(state)
    after = dynamic(small), dynamic(home)
    assert not any(torch.allclose(a, b, atol=1e-3) for a, b in zip(before, after, strict=True))
    fresh = create_model(network.architecture, 10, dynamic=True).eval()
    fresh.load_state_dict(state)
    assert torch.equal(fresh(small), after[0])
    assert torch.equal(fresh(home), after[1])


def test_a_dynamic_network_trains_its_tables_at_any_size(network):
    model = copy.deepcopy(network).double()
    model.set_dynamic()
    model(picture(model, (160, 224)).double()).square().sum().backward()
    tables = {name: p for name, p in model.named_parameters() if name.endswith("bias.table")}
    assert tables
    for name, parameter in tables.items():
        used = parameter.grad.unflatten(1, model.get_submodule(name.removesuffix(".table")).grid)
        assert used.abs().sum((0, 1)).min() > 0, name  # every column of offsets
        assert used.abs().sum((0, 2)).min() > 0, name  # and every row


@torch.no_grad()
def test_an_unexpected_size_is_refused_and_equal_grids_are_not(network):
    with pytest.raises(UserError, match=r"set_input_size.*dynamic=True"):
        network(picture(network, (256, 256)))
    network(picture(network, (217, 223)))  # the grids of 224, as in the official code
    with pytest.raises(UserError, match=r"images of shape \(B, 3, 224, 224\), not \(1, 4, 224, 224\)"):
        network(torch.zeros(1, 4, 224, 224))
    with pytest.raises(UserError, match=r"31x224 px is too small.*32 px at least"):
        network.set_input_size((31, 224))
    with pytest.raises(UserError, match="too small"):
        create_model(network.architecture, resolution=16)
    assert network.resolution == (224, 224)


@torch.no_grad()
def test_there_and_back_again(network):
    """A finer grid's every second entry is the old table."""
    model = copy.deepcopy(network)
    x = picture(model, (224, 224))
    model.set_input_size((448, 448))
    assert model(picture(model, (448, 448))).shape == (1, 10)
    model.set_input_size(224)
    torch.testing.assert_close(model(x), network(x), rtol=0, atol=1e-6)


def test_costs_know_every_size():
    for name in NAMES:
        architecture = Architecture.named(name)
        for size in ((208, 240), (97, 131)):
            model = create_model(architecture, 10, size)
            assert architecture.parameters(10, resolution=size) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("size", [0, -224, (64, 64, 64), (224,), "abc", 64.0, (64, 0), None.__class__], ids=str)
def test_what_is_no_size(size):
    with pytest.raises(UserError, match=r"whole number of px or a pair \(height, width\)"):
        create_model("efficientformerv2_s0", resolution=size)


def test_an_optimiser_that_has_the_tables_trains_them_at_the_new_size():
    """They stay the parameters they were; one that has moved them already refuses their new shape."""
    model = create_model("efficientformerv2_s0", 10, 64)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)
    model.set_input_size(96)
    tables = {name: p.detach().clone() for name, p in model.named_parameters() if name.endswith("bias.table")}
    model(picture(model, (96, 96), n=2)).logsumexp(1).sum().backward()
    optimiser.step()
    assert tables
    for name, before in tables.items():
        assert not torch.equal(dict(model.named_parameters())[name], before), name
    model.set_input_size(128)
    model(picture(model, (128, 128), n=2)).sum().backward()
    with pytest.raises(RuntimeError, match="size"):
        optimiser.step()


def test_an_image_smaller_than_the_strides_is_refused_in_dynamic_mode_too(network):
    dynamic = copy.deepcopy(network)
    dynamic.set_dynamic()
    with pytest.raises(UserError, match="3x40 px is too small"):
        dynamic(torch.zeros(1, 3, 3, 40))
