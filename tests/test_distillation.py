"""Distillation: its loss worked out literally, teachers and their refusals, and answers that are kept."""

import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from pocketformer.architecture import SearchSpace
from pocketformer.errors import UserError
from pocketformer.models import create_model
from pocketformer.models.weights import HEADER
from pocketformer.pipelines.trainings import TrainSettings, train_network
from pocketformer.runs import Ledger
from pocketformer.training.answers import Answers, Cache, CachedTeacher, Cycle, digest
from pocketformer.training.batches import train_batches
from pocketformer.training.compute import Compute
from pocketformer.training.data import Split
from pocketformer.training.engine import Job, train
from pocketformer.training.mixing import Mixing
from pocketformer.training.recipe import Recipe
from pocketformer.training.tasks import DistillationTask
from pocketformer.training.teachers import load_teacher
from tiny import TINY

SPACE = SearchSpace.from_dict(TINY)
SIZE = SPACE.resolution
NAME = "mobilenetv3_small_050"
LITE = {"mean": (127 / 255,) * 3, "std": (128 / 255,) * 3}
IMAGENETTE = {  # ImageNet's numbers of Imagenette's classes
    **{"n01440764": 0, "n02102040": 217, "n02979186": 482, "n03000684": 491, "n03028079": 497},
    **{"n03394916": 566, "n03417042": 569, "n03425413": 571, "n03445777": 574, "n03888257": 701},
}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def split() -> Split:
    rng = np.random.default_rng(0)
    labels = np.arange(96) % 3
    images = 40 + 60 * labels[:, None, None, None] + rng.integers(0, 80, (96, 3, *SIZE))
    return Split("fit", torch.from_numpy(images.astype(np.uint8)), torch.from_numpy(labels))


def student(drop_path: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return create_model(SPACE.largest, 3, distilled=True, layer_scale=0.5, drop_path=drop_path)


class Teacher(nn.Module):
    """Depends on every pixel, so that each class is some image's; remembers how it was asked."""

    pretrained_cfg = LITE

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.norm = nn.Conv2d(3, 3, SIZE, bias=False), nn.BatchNorm2d(3)
        self.conv.weight.data -= self.conv.weight.data.mean((1, 2, 3), keepdim=True)  # else brightness decides
        self.calls = []
        self.eval().requires_grad_(False)

    def forward(self, images):
        logits = self.norm(self.conv(images)).flatten(1)
        self.calls.append((images, logits.dtype, self.training, torch.is_grad_enabled()))
        return 9 * logits


def mixed(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return Mixing(Recipe(mixup=0.8, cutmix=1.0, batch_size=12), 3, 5)(images, labels, 7)


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("mixing", [False, True])
def test_the_loss_is_half_labels_and_half_teacher(split, kind, mixing):
    pixels, labels = split.take(torch.arange(12))
    images, targets = pixels / 127.5 - 1, labels
    if mixing:
        images, targets = mixed(images, labels)
    net, teacher = student(), Teacher()
    task = DistillationTask(net.train(), teacher, label_smoothing=0.1, kind=kind)
    figures = task.run(images, targets, 0, torch.Tensor.backward)
    head, distilled = (logits.detach() for logits in net(images))

    shares = F.one_hot(labels, 3) * 0.9 + 0.1 / 3 if not mixing else targets  # mixing smooths by itself
    ours = -(shares * head.log_softmax(1)).sum(1).mean()
    # The teacher's images, from the share of 255.
    answers = Teacher()(((images + 1) / 2 * 255 - 127) / 128)
    if kind == "hard":
        theirs = -distilled.log_softmax(1)[torch.arange(12), answers.argmax(1)].mean()
    else:  # divergence from the teacher's probabilities, at temperature 1
        p = answers.softmax(1)
        theirs = (p * (p.log() - distilled.log_softmax(1))).sum(1).mean()
    assert float(figures["task_loss"]) == pytest.approx(float(ours), rel=1e-4)
    assert float(figures["distill_loss"]) == pytest.approx(float(theirs), rel=1e-4)
    assert float(figures["loss"]) == pytest.approx(float(ours + theirs) / 2, rel=1e-4)
    assert len(answers.argmax(1).unique()) > 1
    assert net.head_dist.weight.grad.abs().sum() > 0
    assert ("accuracy" in figures) == (not mixing)


def test_a_teacher_sees_its_own_normalisation_in_eval_mode_without_gradient_under_autocast(split, tmp_path):
    teacher = Teacher()
    before = digest(teacher)
    recipe = Recipe.small_images(epochs=1, batch_size=32)
    batches = train_batches(split, 32, SIZE, None, 0)
    with Ledger(tmp_path / "work.jsonl") as ledger:
        task = DistillationTask(student(), teacher)
        train(task, batches, recipe, Job(tmp_path, "t", ledger), 0, Compute(precision="bfloat16"))
    assert len(teacher.calls) == 3
    assert {call[1:] for call in teacher.calls} == {(torch.bfloat16, False, False)}
    assert digest(teacher) == before  # its norms kept their statistics
    # Every image that it saw is (byte - 127) / 128 of a stored one, exactly.
    seen = torch.cat([call[0] for call in teacher.calls]) * 128 + 127
    assert (seen - seen.round()).abs().max() < 1e-3
    stored = split.images.flatten(1).sum(1).sort().values
    assert torch.equal(seen.round().long().flatten(1).sum(1).sort().values, stored)


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    import timm

    torch.manual_seed(0)
    return timm.create_model(NAME).state_dict()  # 1000 classes


def of(weights: dict, classes: int) -> dict[str, torch.Tensor]:
    return {n: t[:classes].clone() if n.startswith("classifier.") else t for n, t in weights.items()}


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_teacher_of_a_file(tmp_path, weights, suffix):
    file, tensors = tmp_path / f"teacher.{suffix}", of(weights, 3)
    if suffix == "pth":
        torch.save({"model": tensors, "epoch": 1}, file)
    else:
        save_file(tensors, file, {HEADER: json.dumps(LITE)})
    teacher = load_teacher(f"{NAME}={file}", ("a", "b", "c"), SIZE)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in teacher.state_dict().items())
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    # As the file says, else as timm does of the name: ImageNet's.
    mean = {"pth": (0.485, 0.456, 0.406), "safetensors": LITE["mean"]}[suffix]
    assert tuple(teacher.pretrained_cfg["mean"]) == mean


def test_a_head_of_imagenet_is_cut_to_the_synsets_of_the_data(tmp_path, weights, capsys):
    torch.save(weights, tmp_path / "teacher.pth")
    text = f"{NAME}={tmp_path / 'teacher.pth'}"
    cut = load_teacher(text, tuple(IMAGENETTE), (64, 64))
    assert "note: teacher" in (said := capsys.readouterr().err)
    assert "of its 1000 ImageNet classes, the data's 10 answer" in said
    classes = tuple(f"c{i}" for i in range(1000))
    whole = load_teacher(text, classes, (64, 64))
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(cut(images), whole(images)[:, list(IMAGENETTE.values())])
    assert cut.pretrained_cfg == whole.pretrained_cfg
    with pytest.raises(UserError, match=r"1000 classes, the data has 2 .*n01440764"):
        load_teacher(text, ("n01440764", "tench"), (64, 64))


@pytest.mark.parametrize(
    ("name", "wrong", "said"),
    [
        (NAME, lambda w: of(w, 5), "knows 5 classes, the data has 3"),
        (NAME, lambda w: {**of(w, 3), "conv_stem.weight": torch.zeros(1)}, "1 tensors differ, first conv_stem.weight"),
        (NAME, lambda w: {n: t for n, t in of(w, 3).items() if "classifier" not in n}, "holds no classifier"),
        ("resnet18", lambda w: of(w, 3), "no classifier of it"),
        ("regnety_16", lambda w: w, "not a timm model; near: regnety_160"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused_in_one_line(tmp_path, weights, name, wrong, said):
    torch.save(wrong(weights), tmp_path / "teacher.pth")
    with pytest.raises(UserError, match=said) as error:
        load_teacher(f"{name}={tmp_path / 'teacher.pth'}", ("a", "b", "c"), SIZE)
    assert "\n" not in str(error.value)


def test_the_papers_teacher_has_deits_weights(monkeypatch):
    """Not those that timm now has under its bare name."""
    import timm

    def create(name, **given):
        asked.append((name, given))
        network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1000))
        network.num_classes, network.pretrained_cfg = 1000, LITE
        return network

    asked = []
    monkeypatch.setattr(timm, "create_model", create)
    load_teacher("regnety_160", tuple(timm.data.ImageNetInfo("imagenet-1k").label_names()), SIZE)
    assert asked == [("regnety_160.deit_in1k", {"pretrained": True})]
    assert timm.get_pretrained_cfg("regnety_160.deit_in1k").url.endswith("/deit/regnety_160-a5fe301d.pth")
    with pytest.raises(UserError, match="knows 1000 classes, the data has 3"):
        load_teacher("regnety_160", ("a", "b", "c"), SIZE)


def test_a_teacher_made_for_one_size_refuses_others(tmp_path):
    import timm

    torch.save(timm.create_model("vit_tiny_patch16_224", num_classes=3).state_dict(), tmp_path / "t.pth")
    with pytest.raises(UserError, match="does not take images of 16×16 px"):
        load_teacher(f"vit_tiny_patch16_224={tmp_path / 't.pth'}", ("a", "b", "c"), (16, 16))


# --- answers that are kept


EPOCHS = 2  # of a cycle, of 3 steps each
RECIPE = Recipe.small_images(epochs=5, batch_size=32, checkpoint_every=4, mixup=0.8, cutmix=1.0)  # 15 steps


class Killed(Exception):
    pass


def run(folder, split, kept=None, kill_at=None, kind="hard", facts=None, accumulate=1):
    """Trains over cycled batches; the weights, and how many images the teacher answered."""
    teacher = Teacher()
    cycle = Cycle(train_batches(split, 32, SIZE, RECIPE.augmentation, 3), EPOCHS)
    guide = teacher if kept is None else CachedTeacher(teacher, Answers(kept, facts or {"seed": 3}, cycle, 3, kind))

    class Task(DistillationTask):
        def run(self, images, targets, step, backward):
            if step == kill_at:
                raise Killed
            return super().run(images, targets, step, backward)

    task = Task(student(0.2), guide, 0.1, kind)
    with Ledger(folder / "work.jsonl") as ledger:
        mix = cycle.mixing(Mixing(RECIPE, 3, 3))
        train(task, cycle, RECIPE, Job(folder, "t", ledger), 3, Compute(accumulate=accumulate), mix)
    return task.model.state_dict(), sum(len(call[0]) for call in teacher.calls)


def same(a: dict, b: dict) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_kept_answers_change_no_bit(tmp_path, split, accumulate):
    plain, asked = run(tmp_path / "plain", split, accumulate=accumulate)
    assert asked == 15 * 32
    first, asked = run(tmp_path / "first", split, tmp_path / "kept", accumulate=accumulate)
    assert asked == EPOCHS * 96  # once for every image of the cycle
    again, asked = run(tmp_path / "again", split, tmp_path / "kept", accumulate=accumulate)
    assert asked == 0
    assert len(np.unique(np.load(tmp_path / "kept/epoch_0000.npy"))) == 3
    assert same(plain, first)
    assert same(plain, again)
    assert sorted(p.name for p in (tmp_path / "kept").iterdir()) == ["answers.json", "epoch_0000.npy", "epoch_0001.npy"]


# Before the first checkpoint, in the second epoch, in the second cycle.
@pytest.mark.parametrize(("kill_at", "kind"), [(2, "hard"), (5, "soft"), (8, "hard")])
def test_killed_while_answers_are_written_it_ends_as_if_not(tmp_path, split, kill_at, kind):
    whole, _ = run(tmp_path / "whole", split, tmp_path / "kept a", kind=kind)
    with pytest.raises(Killed):
        run(tmp_path / "killed", split, tmp_path / "kept b", kill_at, kind)
    resumed, asked = run(tmp_path / "killed", split, tmp_path / "kept b", kind=kind)
    assert same(whole, resumed)
    assert asked == max(6 - kill_at, 0) * 32  # nothing twice
    for name in ("epoch_0000.npy", "epoch_0001.npy", "answers.json"):
        assert (tmp_path / "kept a" / name).read_bytes() == (tmp_path / "kept b" / name).read_bytes()


def test_answers_outlive_the_process_that_was_killed(tmp_path, split):
    cycle, logits = Cycle(train_batches(split, 32, SIZE, None, 3), 2), torch.randn(32, 3)

    def answers():
        return Answers(tmp_path, {}, cycle, 3, "hard")

    if (child := os.fork()) == 0:
        answers().keep(4, 0, logits[:16])  # half of a batch
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert torch.equal(answers().find(4, 0, 16).argmax(1), logits[:16].argmax(1))
    assert answers().find(4, 0, 32) is None


def test_an_answer_cut_off_in_the_middle_is_asked_for_again(tmp_path, split):
    whole, _ = run(tmp_path / "a", split, tmp_path / "kept", kind="soft")
    answers = np.load(tmp_path / "kept/epoch_0001.npy", mmap_mode="r+")
    answers[1, 7, 2] = np.nan
    del answers
    again, asked = run(tmp_path / "b", split, tmp_path / "kept", kind="soft")
    assert asked == 32
    assert same(whole, again)


def test_answers_to_other_images_are_refused(tmp_path, split):
    cycle = Cycle(train_batches(split, 32, SIZE, None, 3), 2)
    facts = {"teacher": "abc", "augmentation": {"flip": True}, "seed": 3}
    Answers(tmp_path, facts, cycle, 3, "hard")
    Answers(tmp_path, facts, replace(cycle, epochs=9), 3, "hard")  # more of the same
    with pytest.raises(UserError, match=r"other images \(augmentation flip was true, now false\): choose another"):
        Answers(tmp_path, {**facts, "augmentation": {"flip": False}}, cycle, 3, "hard")
    with pytest.raises(UserError, match=r"kind was \"hard\", now \"soft\""):
        Answers(tmp_path, facts, cycle, 3, "soft")
    (tmp_path / "epoch_0000.npy").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"epoch_0000.npy are damaged"):
        Answers(tmp_path, facts, cycle, 3, "hard").find(0, 0, 4)


def test_a_cache_is_named_by_its_epochs_and_perhaps_a_folder(tmp_path):
    assert Cache.parse("10") == Cache(10)
    assert Cache.parse(f"3={tmp_path}") == Cache(3, tmp_path)
    for wrong in ("0", "-1", "x", "1.5", "=folder"):
        with pytest.raises(UserError, match="teacher cache"):
            Cache.parse(wrong)


def test_runs_share_a_cache_or_are_refused(tmp_path):
    import timm

    torch.save(timm.create_model(NAME, num_classes=2).state_dict(), tmp_path / "teacher.pth")
    rng = np.random.default_rng(0)
    for i in range(40):
        file = tmp_path / f"photos/{'ab'[i % 2]}/{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (28, 28, 3), np.uint8)).save(file)
    SearchSpace.named("pocket28").smallest.save(tmp_path / "architecture.json")

    def go(name, **changes):
        recipe = Recipe.small_images(epochs=3, batch_size=16)
        teacher, cache = f"{NAME}={tmp_path / 'teacher.pth'}", f"1={tmp_path / 'kept'}"
        given = {"teacher": teacher, "teacher_cache": cache, "workers": 0, **changes}
        settings = TrainSettings(str(tmp_path / "architecture.json"), str(tmp_path / "photos"), recipe, **given)
        train_network(settings, tmp_path / name)
        return (tmp_path / name / "model.safetensors").read_bytes()

    first = go("a")
    kept = (tmp_path / "kept/epoch_0000.npy").read_bytes()
    assert go("b") == first
    assert (tmp_path / "kept/epoch_0000.npy").read_bytes() == kept
    with pytest.raises(UserError, match=r"answers to other images .*choose another folder, or delete it"):
        go("c", seed=1)
    with pytest.raises(UserError, match="there is no --teacher"):
        go("d", teacher=None)
    assert not (tmp_path / "d").exists()
