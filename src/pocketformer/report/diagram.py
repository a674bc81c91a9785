"""The chosen architecture drawn as stages and blocks: an inline SVG, a row a stage, data flowing down."""

from pocketformer.architecture import FFN, Architecture, Attention, Selection
from pocketformer.architecture import blocks as values
from pocketformer.report.theme import LIGHT
from pocketformer.report.wording import count, plural, safe

_BOX, _GAP, _HEIGHT, _LABEL = 28, 6, 44, 20
_WIDTH = 340  # room for the texts, and a phone's width

CSS = """
.arch text{font:13px system-ui,sans-serif;fill:var(--fg)} .arch .small{font-size:11px;fill:var(--muted)}
.arch .strong{font-weight:600}
.arch .ffn{fill:var(--blue);stroke:var(--blue)} .arch .attention{fill:var(--orange);stroke:var(--orange)}
.arch .gone{fill:none;stroke:var(--muted);stroke-dasharray:3 3;opacity:.5}
.arch .frame{fill:none;stroke:var(--line)} .arch .plain{fill:var(--panel);stroke:var(--muted)}
.arch .flow{stroke:var(--muted);fill:none}
"""


_MIXERS = {"pool": "pooling and MLP", "dwconv": "3×3 convolution and MLP", "none": "MLP"}


def _name(block: values.BlockValue) -> str:
    """What a block is, in words."""
    match block:
        case values.MetaBlock():
            return f"{_MIXERS[block.mixer]}, expansion {block.expansion:g}"
        case values.TokenFFNBlock():
            return f"MLP on tokens, expansion {block.expansion:g}"
        case values.FFNBlock():
            return f"FFN, expansion {block.expansion:g}"
        case values.TokenAttentionBlock():
            return "attention on tokens"
        case values.AttentionBlock():
            if block.stride == 1:
                return "attention"
            return f"attention, {'keys and values' if block.full_queries else 'all'} at stride {block.stride}"
        case values.ConvDownsampling():
            return "convolution"
        case values.AttentionDownsampling():
            return "dual-path attention" if block.dual_path else "attention"
        case values.PatchStem():
            return f"one {block.kernel} × {block.kernel} convolution"
    raise TypeError(block)


def _slots(stage: int, architecture: Architecture, selection: Selection | None) -> list[tuple[str, float, bool]]:
    """(kind, expansion, kept) of each slot; without a selection, of each block."""
    if selection is None:
        blocks = architecture.stages[stage].blocks
        return [("ffn", b.expansion, True) if isinstance(b, FFN) else ("attention", 0, True) for b in blocks]
    offer, kept = selection.space.stages[stage], selection.kept[stage]
    slots = []
    for slot in range(offer.slots):
        if offer.is_attention(slot):
            slots.append(("attention", 0, slot in kept))
        else:
            ratio = selection.expansion(stage, slot) if slot in kept else selection.space.expansions[-1]
            slots.append(("ffn", ratio, slot in kept))
    return slots


def _block(x: float, y: float, kind: str, ratio: float, name: str, most: float, slot: int) -> str:
    """`name` is empty where the slot is removed."""
    height = _HEIGHT if kind == "attention" else max(8, _HEIGHT * ratio / most)
    what = f"slot {slot}: {name}" if name else f"slot {slot}: removed ({'attention' if not ratio else 'FFN'})"
    shade = 1 if kind == "attention" else 0.35 + 0.65 * ratio / most
    style = f'class="{kind}" fill-opacity="{shade:.2f}"' if name else 'class="gone"'
    round_ = 13 if kind == "attention" else 3  # told apart by shape as well as by colour
    letter = "A" if kind == "attention" else f"{ratio:g}"
    box = (
        f'<rect x="{x}" y="{y + _HEIGHT - height:.1f}" width="{_BOX}" height="{height:.1f}" rx="{round_}" '
        f"{style}><title>{what}</title></rect>"
    )
    if not name:
        return box
    return box + (f'<text class="small" x="{x + _BOX / 2}" y="{y + _HEIGHT + 13}" text-anchor="middle">{letter}</text>')


def _line_box(y: float, text: str) -> str:
    return (
        f'<rect class="plain" x="0.5" y="{y}" width="{_WIDTH - 1}" height="28" rx="6"/>'
        f'<text x="10" y="{y + 19}">{text}</text>'
    )


def _arrow(y: float, text: str = "") -> str:
    arrow = f'<path class="flow" d="M14 {y}v16m-4 -5l4 5l4 -5"/>'
    return arrow + (f'<text class="small" x="28" y="{y + 12}">{text}</text>' if text else "")


def _legend(y: float, architecture: Architecture, most: float, gone: bool) -> tuple[str, float]:
    """The legend, and how wide it is."""
    design, parts, x = architecture.design, [], 0.0
    local = "FFN" if design.token_mixer == "ffn" else _MIXERS[design.token_mixer]
    attention = "attention (tokens)" if design.attention == "tokens" else "attention"
    items = [("ffn", f"{local} by expansion (to {most:g})", 14, 3), ("attention", attention, 14, 7)]
    for kind, text, side, round_ in items + ([("gone", "removed", 14, 3)] if gone else []):
        parts.append(f'<rect class="{kind}" x="{x}" y="{y}" width="{side}" height="{side}" rx="{round_}"/>')
        parts.append(f'<text class="small" x="{x + 18}" y="{y + 11}">{text}</text>')
        x += 30 + 6.3 * len(text)
    return "".join(parts), x


def _stage_title(j: int, architecture: Architecture, selection: Selection | None, slots: list) -> str:
    stage = architecture.stages[j]
    kept = [kind for kind, _, there in slots if there]
    parts = [f"{stage.width} channels", f"{len(kept)} of {len(slots)} blocks kept"]
    if selection is not None:
        parts[0] += f" of {selection.space.stages[j].widths[-1]}"
    else:
        parts[1] = plural(len(kept), "block")
    return ", ".join(parts)


def diagram(
    architecture: Architecture,
    selection: Selection | None = None,
    num_classes: int | None = None,
    top: str | None = None,
) -> str:
    """The network as an `<svg>`. With a selection the slots of the supernet that were removed stand faint. `top`: what
    stands on its stages in words, if not a classifier's head."""
    blocks = architecture.blocks(None, num_classes or 1000, distilled=False)
    first, head = blocks[0], blocks[-1]
    downs = [b for b in blocks if b.kind == "downsampling"]
    names = iter([_name(b) for b in blocks if b.kind in ("ffn", "attention")])
    grids = [first.out_grid, *(d.out_grid for d in downs)]
    rows = [_slots(j, architecture, selection) for j in range(len(architecture.stages))]
    ratios = [ratio for row in rows for _, ratio, _ in row]
    most = max([*ratios, *(selection.space.expansions if selection else ())])
    gone = any(not kept for row in rows for _, _, kept in row)
    legend, legend_width = _legend(0, architecture, most, gone)
    width = max(_WIDTH, round(legend_width), *(len(row) * (_BOX + _GAP) + 14 for row in rows))

    parts, y = [legend], 26.5
    size = f"{architecture.design.resolution[0]} × {architecture.design.resolution[1]} px"
    stem = "" if isinstance(first, values.Stem) else f", {_name(first)}"
    parts.append(_line_box(y, f"Stem: image of {size} to {first.width} channels{stem}"))
    y += 30
    for j, row in enumerate(rows):
        note = ""
        if j > 0:
            stride = downs[j - 1].stride
            note = f"{'downsampling' if stride > 1 else 'transition'}: {_name(downs[j - 1])}, stride {stride}"
        parts.append(_arrow(y, note))
        y += 20
        title = _stage_title(j, architecture, selection, row)
        frame = _LABEL * 2 + _HEIGHT + 26
        parts.append(f'<rect class="frame" x="0.5" y="{y}" width="{width - 1}" height="{frame}" rx="8"/>')
        parts.append(
            f'<text class="strong" x="10" y="{y + 18}">Stage {j + 1}: grid {grids[j][0]} × {grids[j][1]}</text>'
        )
        parts.append(f'<text class="small" x="10" y="{y + 34}">{title}</text>')
        for i, (kind, ratio, kept) in enumerate(row):
            name = next(names) if kept else ""
            parts.append(_block(10 + i * (_BOX + _GAP), y + 2 * _LABEL + 4, kind, ratio, name, most, i))
        y += frame + 2
    parts.append(_arrow(y))
    classes = f"{num_classes} classes" if num_classes else "classes"
    top = top or f"mean of {grids[-1][0]} × {grids[-1][1]}, {head.width} to {classes}"
    parts.append(_line_box(y + 20, f"Head: {top}"))
    height = y + 20 + 30
    attention = sum(isinstance(b, Attention) for s in architecture.stages for b in s.blocks)
    total = sum(len(s.blocks) for s in architecture.stages)
    counted = f"{plural(len(rows), 'stage')}, {plural(total, 'block')}, {attention} of them attention"
    about = f"{counted}; {count(head.width)} channels"
    return (
        f'<svg class="arch" xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height:.0f}" '
        f'viewBox="0 0 {width} {height:.0f}" role="img" aria-label="{safe(about)}">{"".join(parts)}</svg>'
    )


def standalone(svg: str, css: str = CSS) -> str:
    """The same for a file of its own: light, with its styles inside."""
    for name, colour in LIGHT.items():
        css = css.replace(f"var(--{name})", colour)
    start = svg.index(">") + 1
    return f'{svg[:start]}<style>{css}</style><rect width="100%" height="100%" fill="#fff"/>{svg[start:]}'
