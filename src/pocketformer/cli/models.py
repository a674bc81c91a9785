"""`models`: the zoo beside the papers' figures, and the shipped search spaces."""

from typing import Annotated

import typer

from pocketformer.cli import options

_NOTES = """\
Params: every trainable number, both heads, 1000 classes; GMACs: convolutions, linears and the two attention
products at the native input size. 'theirs': the same networks counted as the papers' profiler does (no BatchNorm,
layer scale or attention bias, one bias per input channel of a convolution; also GELU, LayerNorm, pooling). 'paper',
top-1 on ImageNet-1K (300/450 epochs) and latency in ms are V2's Table 2: iPhone 12 NPU by Core ML, Pixel 6 CPU by
XNNPACK with ReLU throughout, A100 by TensorRT at batch 64. V1's own Table 1 prints 12.2, 31.3 and 82.0 M
(convolution and linear weights alone) and 1.2, 3.4 and 7.9 GMACs (which no full count gives)."""
_HEADER = ("network", "M params", "theirs", "paper", "GMACs", "theirs", "paper", "top-1 %")
_HEADER += ("iPhone 12", "Pixel 6", "A100")


def models(
    peers: Annotated[bool, typer.Option("--peers", help="Also the other networks of the papers' table.")] = False,
    json: options.Json = False,
) -> None:
    """List the published networks and the search spaces.

    Each network stands beside the papers' figures.

    Two counts: every trainable parameter, and that of the papers' own profiler, whose printed figure
    stands beside it. --json adds every block, and the peers. Writes no files.

    \b
    Example:
      pocketformer models --peers
    """
    from pocketformer.architecture.results import published_results
    from pocketformer.cli.summary import aligned

    results = published_results()
    zoo = _zoo({r.network: r for r in results if r.network})
    others = [r.to_dict() for r in results if not r.network]
    spaces = _spaces()
    if json:
        options.print_json({"models": zoo, "peers": others, "spaces": spaces})
        return
    rows = [_HEADER]
    for m in zoo:
        sizes = (f"{m['parameters'] / 1e6:.2f}", f"{m['paper_parameters'] / 1e6:.2f}")
        macs = (f"{m['macs'] / 1e9:.3f}", f"{m['paper_macs'] / 1e9:.3f}")
        rows.append(_row(m["name"], sizes, macs, m["published"]))
    if peers:
        rows += [_row(r["name"].replace("_retrained", " †"), ("", ""), ("", ""), r) for r in others]
    print(aligned([[cell or "-" for cell in row] for row in rows]))
    print(f"\n{_NOTES}" + " †: retrained." * peers + "\n")
    rows = [("network", "input", "widths", "blocks (FFN + attention) of each stage")]
    for m in zoo:
        blocks = (" + ".join(str(n) for n in counts if n) for counts in map(_counts, m["blocks"]))
        rows.append((m["name"], _pixels(m), " ".join(map(str, m["widths"])), ", ".join(blocks)))
    print(aligned(rows))
    rows = [("search space", "M params", "M MACs", "input", "paper's largest")]
    for s in spaces:
        low, high = s["smallest"], s["largest"]
        parameters = f"{low['parameters'] / 1e6:.2f} to {high['parameters'] / 1e6:.2f}"
        macs = f"{low['macs'] / 1e6:,.1f} to {high['macs'] / 1e6:,.1f}"
        paper = "-"
        if "paper" in s:
            paper = f"{s['paper']['parameters'] / 1e6:.1f} M, {s['paper']['macs'] / 1e9:.2f} GMACs"
        rows.append((s["name"], parameters, macs, _pixels(s), paper))
    print(f"\n{aligned(rows)}")
    print("\nA space: from the smallest subnet of its training to the largest; with fewer classes, they are smaller.")


def _zoo(results: dict) -> list[dict]:
    from pocketformer.architecture import NAMES, Architecture

    zoo = []
    for name in NAMES:
        a = Architecture.named(name)
        zoo.append(
            {
                "name": name,
                "parameters": a.parameters(),
                "macs": a.macs(),
                "paper_parameters": a.paper_parameters(),
                "paper_macs": a.paper_macs(),
                "weight_bytes": a.weight_bytes(),
                "peak_memory": a.peak_memory(),
                "published": results[name].to_dict(),
                "resolution": list(a.design.resolution),
                "widths": [stage.width for stage in a.stages],
                "blocks": [[str(b) for b in stage.blocks] for stage in a.stages],
            }
        )
    return zoo


def _spaces() -> list[dict]:
    from pocketformer.architecture import SPACES, SearchSpace
    from pocketformer.architecture.results import space_costs

    spaces = map(SearchSpace.named, SPACES)
    return [{"name": s.name, "resolution": list(s.resolution), **space_costs(s)} for s in spaces]


def _row(name: str, sizes: tuple[str, str], macs: tuple[str, str], printed: dict) -> tuple[str, ...]:
    """`sizes` and `macs`: ours by both counts. A figure that nobody printed is left out."""
    latencies = (_number(printed[device]) for device in ("iphone12", "pixel6", "a100"))
    top1 = "/".join(map(str, printed["top1"]))
    return (name, *sizes, _number(printed["parameters"]), *macs, _number(printed["gmacs"], "g"), top1, *latencies)


def _number(value: float | None, form: str = ".1f") -> str:
    return "" if value is None else f"{value:{form}}"


def _counts(blocks: list[str]) -> tuple[int, int]:
    return len(blocks) - blocks.count("attention"), blocks.count("attention")


def _pixels(row: dict) -> str:
    return f"{row['resolution'][0]} px"
