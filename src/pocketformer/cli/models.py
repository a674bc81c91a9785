"""`models`: the zoo and the shipped search spaces."""

from pocketformer.cli import options


def models(json: options.Json = False) -> None:
    """The published architectures and the shipped search spaces: parameters and MACs by our count.

    Parameters are all trainable ones with both heads and 1000 classes; MACs count convolutions, linears and the
    two attention products at the native resolution.
    """
    from pocketformer.architecture import NAMES, SPACES, Architecture, SearchSpace

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
    print("model                  parameters      MACs   input    widths")
    for m in zoo:
        widths = " ".join(map(str, m["widths"]))
        print(f"{m['name']:<21} {m['parameters'] / 1e6:>8.2f} M {m['macs'] / 1e9:>7.2f} G  {m['resolution'][0]} px   {widths}")
    print("\nspace                 parameters of smallest to largest        MACs                    input")
    for s in spaces:
        low, high = s["smallest"], s["largest"]
        parameters = f"{low['parameters'] / 1e6:.2f} M to {high['parameters'] / 1e6:.2f} M"
        macs = f"{low['macs'] / 1e6:.1f} M to {high['macs'] / 1e6:.1f} M"
        print(f"{s['name']:<21} {parameters:<40} {macs:<23} {s['resolution'][0]} px")
    print("\nBoth heads, 1000 classes; every trainable parameter counted.")
