"""The last lines of commands: what came out, in words and figures with units."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pocketformer.deploy import ExportReport


def percent(test: dict) -> str:
    low, high = test["interval95"]
    return f"{test['accuracy']:.1%} ({low:.1%} to {high:.1%})"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their longest cell: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "   ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(f"  {line}".rstrip() for line in lines)


def exported(report: "ExportReport", out: Path) -> str:
    """What was written, and how well it agrees with PyTorch."""
    text = f"{out}: {report.bytes / 1e6:.2f} MB, {report.details}, {report.precision}\n"
    if (found := report.verified) is None:
        return f"{text}not verified: no runtime on this machine can run {report.format} files"
    return (
        f"{text}verified on {found.images} images: logits differ from PyTorch's by at most {found.max_difference:.1e} "
        f"(their standard deviation is {found.logits_std:.2f})"
    )


def summary(outcome: dict, out: Path) -> str:
    """A short text: budgets against measured values, the comparison on test, where the files are."""
    shipped = outcome["shipped"]
    latency = shipped["latency"]
    measured = {
        "latency": (latency["measured"], "ms", ".3f"),
        "size": (shipped["parameters"], "parameters", ",.0f"),
        "macs": (shipped["macs"] / 1e6, "M multiply-adds", ",.2f"),
        "memory": (shipped["peak_memory"] / 1e6, "MB activations", ".2f"),
    }
    lines = ["", f"Found at step {shipped['step']} of {outcome['search']['steps']} ({outcome['search']['status']}):"]
    for name, (value, unit, form) in measured.items():
        text = f"  {value:{form}} {unit}"
        if name == "latency" and latency.get("median") is not None:
            text += f" undisturbed (10th percentile; median {latency['median']:.3f} ms)"
        if name in outcome["budgets"]:
            budget = outcome["budgets"][name] / (1e6 if name in ("memory", "macs") else 1)
            binding = "the binding budget" if name == outcome["binding"] else "not binding"
            over = ": over budget" if shipped["usage"][name] > 1 else ""
            text += f", budget {budget:{form}} {unit} ({shipped['usage'][name]:.0%} used, {binding}{over})"
        if name == "latency":
            runtime = outcome["runtime"]
            text += f"; exported file on {runtime['name']}, {runtime['threads']} thread(s), batch {runtime['batch']}"
        lines.append(text)
    images = outcome["data"]["images"]["test"]
    lines += ["", f"Accuracy on test ({images} images, 95 % interval), all with the same final training:"]
    rows = []
    for row in outcome["comparison"]:
        ms = row["latency_measured"] if row["latency_measured"] is not None else row["latency_predicted"]
        how = "measured" if row["latency_measured"] is not None else "by table"
        parameters = f"{row['parameters']:,} parameters"
        median = f", median {row['latency_median']:.3f}" if row.get("latency_median") is not None else ""
        rows.append((row["title"], percent(row["test"]), parameters, f"{ms:.3f} ms {how}{median}"))
    lines += [aligned(rows), "", outcome["verdict"]["text"], ""]
    lines.append(f"Network: {out / shipped['file']} (verified against PyTorch)")
    lines.append(f"Page:    {out / 'report.html'}")
    return "\n".join(lines)
