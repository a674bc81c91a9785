"""What `benchmark` prints: the papers' table with this device's figures, and the observations on operators."""

from pocketformer.cli.summary import aligned

_HEADER = ("network", "M params", "MMACs", "median ms", "10th pct", "IQR ms", "ratio", "95 % interval")
_HEADER += ("Pixel 6", "iPhone 12", "A100", "MES", "top-1 %")
_NOTE = """\
ratio: to MobileNetV2 x1.0 ({unit}), with a 95 % interval; Pixel 6 (CPU, all ReLU), iPhone 12 (NPU), A100 (GPU,
batch 64): the same ratio from V2's Table 2. MES: eq. 7 with MobileNetV2's latency here as the unit. top-1: as
published (one figure a training). Parameters and multiply-adds: of all heads, as deployed."""
_DEVICES = {"pixel6": "Pixel 6", "iphone12": "iPhone 12", "a100": "A100"}


def networks_text(found: dict) -> str:
    """The table of networks, what it means, and what was left out."""
    rows = found["networks"]
    table = [[cell or "-" for cell in line] for line in (_HEADER, *map(_network, rows))]
    units = {row["unit"] for row in rows}
    unit = "at 224x224 px" if units == {"MobileNetV2x1.0"} else "at each one's input size"
    lines = [_how(found), aligned(table), "", _NOTE.format(unit=unit)]
    if any(row["timm"] == "fbnetc_100" for row in rows):
        lines.append("FBNet-V3: timm's FBNet-C, whose size, cost and accuracy that row of the table has.")
    if found["agreement"]:
        parts = (
            f"{_DEVICES[name]} {known['correlation']:.2f} ({known['networks']} networks)"
            for name, known in found["agreement"].items()
        )
        lines.append(f"Rank correlation of these ratios with the paper's: {', '.join(parts)}.")
    others = [f"{row['name']} ({row['classes']})" for row in rows if row["classes"] not in (None, 1000)]
    if others:
        lines.append(
            f"Random weights and 1000 classes in all, but for: {', '.join(others)}. Files are timed as they are."
        )
    kept = [row["name"] for row in rows if row["activations"]]
    if found["fingerprint"]["activation"] == "relu":
        lines.append(f"Activations that could not be replaced by ReLU: {', '.join(kept) or 'none'}.")
    return "\n".join(lines + _left_out(found))


def operators_text(found: dict) -> str:
    """The table of comparisons, and how often each observation holds."""
    from pocketformer.devices.operators import OBSERVATIONS

    table = [("observation: comparison", "slower", "faster", "ratio", "95 % interval", "verdict")]
    for row in found["comparisons"]:
        sides = (_side(row, "slower"), _side(row, "faster"))
        title = f"{row['observation']}: {row['comparison']}"
        low, high = (_number(bound) or "?" for bound in row["ratio95"])
        table.append((title, *sides, _number(row["ratio"]) or "?", f"{low} to {high}", row["verdict"]))
    lines = [_how(found), aligned(table), ""]
    for number, counts in found["observations"].items():
        shares = ", ".join(f"{verdict} {count} x" for verdict, count in counts.items() if count)
        lines.append(f"Observation {number}, {OBSERVATIONS[int(number)]}: {shares}.")
    lines.append(
        "\nTimes (median ± spread): what one operator more costs in a chain; 'slower' is the side the paper calls so."
        "\nHolds: its ratio is above 1 with 95 % confidence ('hardly slower': at most 1.05). Differences of 2 to 5 %"
        "\nmay come from where a session's memory lies: run again with another --seed before believing them."
    )
    return "\n".join(lines + _left_out(found))


def without_samples(found: dict) -> dict:
    """The result as it is printed by --json: the samples are in --out."""
    kept = {key: value for key, value in found.items() if key != "operators"}
    if "networks" in kept:
        kept["networks"] = [{k: v for k, v in row.items() if k != "samples"} for row in kept["networks"]]
    how = kept["fingerprint"]
    return {**kept, **{name: how[name] for name in ("runtime", "threads", "batch")}}


def _how(found: dict) -> str:
    p = found["fingerprint"]
    activation = ", all activations ReLU" if p.get("activation") == "relu" else ""
    version = f"{p['runtime']} {p['version']}"
    return (
        f"{p.get('gpu', p['device'])} ({p['on']}), {version}, {p['threads']} thread(s), batch {p['batch']}, "
        f"{p['rounds']} rounds{activation}"
    )


def _network(row: dict) -> tuple[str, ...]:
    low, high = row["ratio95"]
    paper = (_number(row["paper_ratios"][name]) for name in _DEVICES)
    sizes = (_number(row["parameters"], 1e6), _number(row["macs"], 1e6, 1))
    times = (*(f"{row[name]:.3f}" for name in ("median_ms", "tenth_percentile_ms", "spread_ms")), f"{row['ratio']:.2f}")
    times += (f"{low:.2f} to {high:.2f}",)
    return (row["name"], *sizes, *times, *paper, _number(row["mes"], digits=1), "/".join(map(str, row["top1"])))


def _number(value: float | None, unit: float = 1, digits: int = 2) -> str:
    return "" if value is None else f"{value / unit:.{digits}f}"


def _side(row: dict, name: str) -> str:
    return f"{row[f'{name}_ms']:.3f} ± {row[f'{name}_spread_ms']:.3f} ms"


def _left_out(found: dict) -> list[str]:
    return [f"Left out: {failed['name']}: {failed['reason']}" for failed in found["left_out"]]
