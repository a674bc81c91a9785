"""Files of weights as other people's programs write them, drawn at random, some of them hostile. Shared by tests."""

import argparse
import collections
import datetime
import functools
import os
import random
import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

KEYS = ("state_dict", "model", "net", "network", "module", "params", "weights", "my_net", "generator", "checkpoint")
PREFIXES = ("module.", "model.", "net.", "backbone.", "encoder.", "_orig_mod.", "student.", "ema.module.", "arch.net.")
BESIDE = ("criterion.weight", "loss_fn.scale", "train_acc.total", "metrics.auroc.count", "teacher.fc.weight")


class Config(dict):
    """As easydict's, yacs' and the like: a dictionary with attributes."""

    def __init__(self, **values):
        super().__init__(values)
        self.frozen = True


class Own:
    """A class of somebody's program, which would do something if it was imported and made."""

    def __init__(self, canary: Path):
        self.canary = str(canary)

    def __reduce__(self):
        return touch, (self.canary,)


class Stateful:
    """The same, done by what gives a made object its state."""

    def __init__(self, canary: Path):
        self.canary = str(canary)

    def __setstate__(self, state):
        touch(state["canary"])


def touch(path: str) -> None:
    Path(path).touch()


@dataclass
class Code:
    """Pickled as a call."""

    call: tuple

    def __reduce__(self):
        return self.call


def harmless(draw: random.Random) -> object:
    values = [
        np.float64(0.5), np.int32(3), np.arange(3), np.str_("a"), Path("/data/run"), argparse.Namespace(lr=1e-3),
        datetime.datetime(2026, 1, 2), datetime.timedelta(3), collections.defaultdict(list, {"a": [1]}), {1, 2},
        frozenset((1, 2)), torch.Size([1, 2]), torch.float16, collections.OrderedDict(a=1), torch.device("cpu"),
        Config(lr=1.0, names=["x"]), collections.deque([1, 2], 5), collections.Counter("aab"), 1j, b"bytes", 2**80,
        np.random.default_rng(0).bit_generator.state, slice(1, 2), range(3), functools.partial(max, 1), None, "text",
    ]  # fmt: skip
    return draw.choice(values)


def hostile(draw: random.Random, canary: Path) -> object:
    command = f"touch {canary}"
    return draw.choice(
        [
            Code((os.system, (command,))),
            Code((eval, (f"open({str(canary)!r}, 'w')",))),
            Code((exec, (f"open({str(canary)!r}, 'w')",))),
            Code((subprocess.check_call, (["touch", str(canary)],))),
            Code((functools.partial(os.system, command), ())),
            Code((map, (os.system, [command]))),
            Code((getattr, (Code((__import__, ("os",))), "system"))),
            {"deep": [{"down": (Code((os.mkdir, (str(canary),))),)}]},
            Own(canary),
            Stateful(canary),
        ]
    )


@dataclass
class File:
    path: Path
    state: dict[str, torch.Tensor]  # as it lies there
    words: str
    good: bool | None  # None: it may be refused, or be right


def write(folder: Path, number: int, draw: random.Random, state: dict[str, torch.Tensor], canary: Path) -> File:
    """One file of these weights, in a form that is drawn."""
    dtype = draw.choice([torch.float32] * 3 + [torch.float16, torch.bfloat16, torch.float64])
    state = {name: t.to(dtype) if t.is_floating_point() else t.clone() for name, t in state.items()}
    if draw.random() < 0.3:
        state = {name: t for name, t in state.items() if not name.endswith("num_batches_tracked")}
    prefix = "".join(draw.sample(PREFIXES, draw.choice([0, 0, 1, 1, 2, 3])))
    held = {prefix + name: tensor for name, tensor in state.items()}
    if draw.random() < 0.3:
        held |= {f"{prefix}{layer}total_{kind}": torch.zeros(1, dtype=torch.float64)
                 for layer in ("", "stem.") for kind in ("ops", "params")}  # fmt: skip
    beside = draw.random() < 0.4
    if beside:
        held |= {name: torch.rand(3) for name in draw.sample(BESIDE, draw.randint(1, 3))}
    kind = draw.choice(["safetensors", "zip", "zip", "zip", "legacy", "legacy"])
    words, good, path = f"{kind} {dtype} {prefix!r}", True, folder / f"{number}.pth"
    if kind == "safetensors":
        path = path.with_suffix(".safetensors")
        save_file(held, path)
    else:
        value = collections.OrderedDict(held)
        for key in draw.sample(KEYS, draw.choice([0, 1, 1, 2])):
            value = {key: value}
        value = dict(value) if len(value) == 1 else value
        if len(value) == 1 and draw.random() < 0.3:  # averages of it
            value["model_ema"] = {name: t + 1 if t.is_floating_point() else t for name, t in held.items()}
        things = [harmless(draw) for _ in range(draw.randint(0, 4))]
        if draw.random() < 0.25:
            bad = hostile(draw, canary)
            things.append(bad)
            good, words = None if isinstance(bad, Own | Stateful) else False, f"{words} {bad}"
        draw.shuffle(things)
        if len(value) <= 2:
            value = {f"thing {i}": thing for i, thing in enumerate(things)} | value
            if draw.random() < 0.5:
                value["optimizer"] = {"state": {0: {"exp_avg": torch.rand(2), "step": torch.tensor(3.0)}}}
        else:
            good = True
        value = Config(**value) if good and draw.random() < 0.1 else value
        torch.save(value, path, pickle_protocol=draw.choice([2, 2, 2, 3, 4, 5]),
                   _use_new_zipfile_serialization=kind == "zip")  # fmt: skip
        if kind == "zip" and draw.random() < 0.1:
            _inject(path, f"cposix\nsystem\n(Vtouch {canary}\ntR0".encode())
            good = False
    if draw.random() < 0.12:
        data = path.read_bytes()
        path.write_bytes(data[: draw.randrange(len(data) - 64)])
        good, words = False, f"{words}, cut"
    return File(path, state, words, good)


def _inject(path: Path, opcodes: bytes) -> None:
    """Opcodes before all others of the pickle in a file."""
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data[:2] + opcodes + data[2:] if name.endswith("data.pkl") else data)
