"""What a latency record says about the machine and the software that it was measured with."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("pocketformer", "torch", "timm", "onnx")


def host(on: str = "cpu") -> dict[str, str | int]:
    """Processor, its cores that this process may use, and operating system; the GPU, if it measures `on` one."""
    found = {"device": _processor(), "cores": _cores(), "os": f"{platform.system()} {platform.release()}"}
    return found | ({"gpu": gpu} if on == "cuda" and (gpu := _gpu()) else {})


def packages() -> dict[str, str]:
    """Versions of what wrote the measured files."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a source tree
            continue
    return found


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpu() -> str | None:
    import torch  # not needed where nothing runs on a GPU

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _processor(root: Path = Path("/")) -> str:
    """What tells this device from others: a board by its model (ARM processors give no name), else the processor."""
    board = _text(root / "proc/device-tree/model").strip("\0\n ")
    lines = _text(root / "proc/cpuinfo").splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "Hardware"))]
    if board or names:
        return board or names[0]
    if platform.system() == "Darwin":  # `platform.processor()` is "arm" on all of them
        asked = ["sysctl", "-n", "machdep.cpu.brand_string"]
        if name := subprocess.run(asked, capture_output=True, text=True).stdout.strip():
            return name
    return platform.processor() or platform.machine()


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
