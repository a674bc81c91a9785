"""`models`: the zoo and the shipped search spaces."""

from pocketformer.cli import options


def models(json: options.Json = False) -> None:
    """List the published networks and the search spaces.

    Parameters are all trainable ones, with both heads and 1000 classes; MACs count convolutions, linears and
    the two attention products at the native input size. --json adds every block. Writes no files.
    """
    from pocketformer.architecture import NAMES, SPACES, Architecture, SearchSpace
    from pocketformer.cli.summary import aligned

    zoo = []
    for name in NAMES:
        a = Architecture.named(name)
        zoo.append(
            {
                "name": name,
                "parameters": a.parameters(),
                "macs": a.macs(),
                "resolution": list(a.design.resolution),
                "widths": [stage.width for stage in a.stages],
                "blocks": [[str(b) for b in stage.blocks] for stage in a.stages],
            }
        )
    spaces = []
    for name in SPACES:
        space = SearchSpace.named(name)
        members = {"smallest": space.smallest, "largest": space.largest}
        costs = {k: {"parameters": a.parameters(), "macs": a.macs()} for k, a in members.items()}
        spaces.append({"name": name, "resolution": list(space.resolution), **costs})
    if json:
        options.print_json({"models": zoo, "spaces": spaces})
        return
    rows = [("network", "parameters", "MACs", "input", "widths")]
    for m in zoo:
        costs = (f"{m['parameters'] / 1e6:.2f} M", f"{m['macs'] / 1e6:,.1f} M")
        rows.append((m["name"], *costs, _pixels(m), " ".join(map(str, m["widths"]))))
    print(aligned(rows))
    rows = [("search space", "parameters", "MACs", "input")]
    for s in spaces:
        low, high = s["smallest"], s["largest"]
        parameters = f"{low['parameters'] / 1e6:.2f} to {high['parameters'] / 1e6:.2f} M"
        macs = f"{low['macs'] / 1e6:.1f} to {high['macs'] / 1e6:,.1f} M"
        rows.append((s["name"], parameters, macs, _pixels(s)))
    print(f"\n{aligned(rows)}")
    print("\nWith both heads and 1000 classes, every trainable parameter counted. A space: from the smallest subnet")
    print("of its training to the largest; with fewer classes, they are smaller.")


def _pixels(row: dict) -> str:
    return f"{row['resolution'][0]} px"
