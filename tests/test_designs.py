"""Random combinations of design switches: costs against torch's own counts, gradients, deployed forms."""

import json
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from designed import architectures
from perturbed import perturb
from pocketformer import create_model
from pocketformer.architecture import Architecture, Attention, Design, Stage
from pocketformer.architecture.layers import sum_costs
from pocketformer.deploy import export, format_of, fuse
from pocketformer.devices.candidates import fused, write_chain
from pocketformer.models.blank import Blank
from pocketformer.runtimes import runtime

torch.set_num_threads(1)
aten = torch.ops.aten


# --- costs in closed form


@given(architectures(), st.tuples(st.integers(0, 9), st.integers(0, 9)), st.booleans(), st.integers(1, 5))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_costs_are_those_of_the_built_network(architecture, larger, distilled, in_chans):
    resolution = tuple(a + b for a, b in zip(architecture.design.resolution, larger, strict=True))
    options = {"num_classes": 7, "distilled": distilled, "in_chans": in_chans}
    with Blank():
        model = create_model(architecture, resolution=resolution, **options).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, in_chans, *resolution))
    options["resolution"] = resolution
    assert architecture.parameters(**options) == sum(p.numel() for p in model.parameters())
    assert 2 * architecture.macs(**options) == counter.get_total_flops()
    assert architecture.weight_bytes(**options) == sum(t.nbytes for t in model.state_dict().values())
    flops = counter.get_flop_counts()
    blocks = architecture.blocks(**options)
    modules = {module: f"Network.{name}" for name, module in model.named_modules()}
    for block, module in zip(blocks, model.sequence(), strict=False):
        assert block.parameters() == sum(p.numel() for p in module.parameters())
        assert 2 * block.macs() == sum(flops.get(modules[module], {}).values())
    assert sum_costs(b.cost for b in blocks).macs == architecture.macs(**options)


# --- activations


class Trace(TorchDispatchMode):
    """Every operator's inputs and output, in order; all are kept alive, so that storages keep their identity."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        out = operator(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        self.calls.append((operator.overloadpacket, tensors, tree_leaves(out)[0]))
        return out


# Run in place of an input that is not needed any more; `clone` only changes the layout.
IN_PLACE = {aten.relu, aten.hardswish, aten._softmax, aten.add, aten.mul, aten.clone}
IN_PLACE |= {aten.native_group_norm, aten.native_layer_norm}


def peak_values(module, x):
    """The most values alive at once while a module runs, besides its weights: from a trace of its operators."""

    def place(tensor):
        return tensor.untyped_storage()._cdata

    with torch.no_grad(), Trace() as trace:
        y = module(x)
    last = {place(t): i for i, (_, tensors, _) in enumerate(trace.calls) for t in tensors}
    last[place(y)] = len(trace.calls)
    sizes, alive, peak = {place(x): x.numel()}, {place(x)}, x.numel()
    for i, (operator, tensors, new) in enumerate(trace.calls):
        inputs = {place(t) for t in tensors}
        if place(new) not in inputs:
            dying = [p for p in inputs if p in alive and last[p] == i and sizes[p] == new.numel()]
            if operator in IN_PLACE and dying:
                alive.remove(dying[0])
            alive.add(place(new))
            sizes[place(new)] = new.numel()
        peak = max(peak, sum(sizes[p] for p in alive))
        alive = {p for p in alive if last.get(p, i) > i}
    return peak


S0 = Architecture.named("efficientformerv2_s0").with_design(resolution=64)  # values wider than its grids


@given(architectures())
@example(S0)
@example(S0.with_design(strided_attention="keys-values"))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_activations_are_those_of_the_fused_block(architecture):
    for block in architecture.blocks(num_classes=7, distilled=False):
        assert block.activations() == peak_values(fused(block), torch.randn(1, block.inputs, *block.grid)), block


# --- deployed forms


def smooth_images(model, count=2):
    rough = torch.randn(count, model.in_chans, 5, 5, generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate(rough, size=model.resolution, mode="bilinear")


def assert_fused_equals(model, x, tolerance):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fused = fuse(model)
    with torch.no_grad():
        wanted = model.eval()(x)
        atol = tolerance * wanted.std().item()
        torch.testing.assert_close(fused(x), wanted, rtol=tolerance, atol=atol)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    assert not any(p.requires_grad for p in fused.parameters())
    own = {t.untyped_storage().data_ptr() for t in (*fused.parameters(), *fused.buffers())}
    assert not own & {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}


@given(architectures(), st.booleans(), st.tuples(st.integers(0, 9), st.integers(0, 9)))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_fused_equals_the_network(architecture, distilled, larger):
    """In float64, so that nothing but a wrong formula can tell them apart; also at another size than the built one."""
    model = perturb(create_model(architecture, 5, distilled=distilled, in_chans=2).double())
    if any(larger):
        model.set_input_size(tuple(a + b for a, b in zip(model.resolution, larger, strict=True)))
    x = smooth_images(model).double()
    model.train()(x).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.zero_grad()
    assert_fused_equals(model, x, 1e-9)


@pytest.mark.parametrize("name", ["efficientformer_l1", "efficientformer_l3", "efficientformerv2_s0"])
def test_fused_equals_the_published_network_in_single_precision(name):
    with Blank():
        model = create_model(name, 10)
    perturb(model)
    assert_fused_equals(model, smooth_images(model), 1e-5)


EXPORTED = {
    "l1": Architecture.named("efficientformer_l1").with_design(resolution=64),
    "l1-as-v2-table-1": Architecture.named("efficientformer_l1").with_design(
        resolution=64, token_mixer="dwconv", attention="map", local_value=True, stem="large-kernel"
    ),
    "s0-group-norm": Architecture.named("efficientformerv2_s0").with_design(
        resolution=64, norm="gn", activation="hardswish", strided_attention="keys-values", talking_heads=False
    ),
    "s0-plain": Architecture.named("efficientformerv2_s0").with_design(
        resolution=(64, 96), downsampling=("conv", "attention", "attention"), attention_bias=False, local_value=False
    ),
}


def shallow(architecture):
    """Of each stage the last block, after an attention block if it has any: exporters take a while per operator."""
    stages = [
        Stage(stage.width, ([Attention()] if Attention() in stage.blocks else []) + [stage.blocks[-1]])
        for stage in architecture.stages
    ]
    return Architecture(stages, architecture.design)


@pytest.mark.parametrize("architecture", EXPORTED.values(), ids=EXPORTED)
def test_exported_files_compute_the_same(architecture, tmp_path):
    model = perturb(create_model(shallow(architecture), 10))
    report = export(model, tmp_path / "model.onnx", smooth_images(model, 4))
    assert report.verified.max_difference <= 1e-3 * report.verified.logits_std  # or it would have been refused


@pytest.mark.parametrize("name", ["efficientformer_l1", "efficientformerv2_s0"])
def test_every_block_can_be_timed_on_its_own(name, tmp_path):
    """As chains of a profile: each kind of block, and each kind of head."""
    networks = [Architecture.named(name).with_design(resolution=64, norm=norm) for norm in ("bn", "gn")]
    blocks = {(type(b), b.norm if b.kind == "head" else ""): b for n in networks for b in n.blocks(num_classes=7)}
    for block in blocks.values():
        write_chain(format_of("onnx"), [block], tmp_path / "chain.onnx")
        session = runtime("onnxruntime").load(tmp_path / "chain.onnx")
        found = session.run(np.ones((1, block.inputs, *block.grid), np.float32))
        wanted = (1, 7) if block.kind == "head" else (1, block.width, *block.out_grid)
        assert found.shape == wanted, block


# --- the guide

GUIDE = (Path(__file__).parents[1] / "docs" / "designs.md").read_text(encoding="utf-8")


def test_the_guide_prints_what_it_says(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = re.findall(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", GUIDE, re.DOTALL)
    assert len(found) == 3
    for code, printed in found:
        exec(code, {})
        assert capsys.readouterr().out == printed


def test_the_guide_knows_every_switch():
    for switch in fields(Design):
        assert switch.name in GUIDE.replace("`…_", "`downsampling_"), switch.name
        value = switch.default
        if isinstance(value, tuple):
            assert json.dumps(value) in GUIDE, switch.name
    (example,) = re.findall(r"```json\n(.*?)```", GUIDE, re.DOTALL)
    network = Architecture.from_dict(json.loads(example))
    create_model(network, 7)(torch.randn(2, 3, *network.design.resolution))
