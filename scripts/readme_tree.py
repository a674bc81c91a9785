"""Rewrites the README's tree: one line a file, taken from its first line of text.

python scripts/readme_tree.py [--check]
"""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BEGIN, END = "<!-- tree: made by scripts/readme_tree.py -->\n", "<!-- end of tree -->\n"
FOLDERS = ("src/pocketformer", "tests", "benchmarks", "scripts")


def first_line(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.split("\n")[0].strip()


def tree() -> str:
    """The tree as Markdown: a folder's line is that of its `__init__.py`."""
    lines = []
    for top in FOLDERS:
        for folder in sorted({p.parent for p in (ROOT / top).rglob("*.py")}):
            init = folder / "__init__.py"
            about = f"  {first_line(init)}" if init.exists() else ""
            lines.append(f"{folder.relative_to(ROOT)}/{about}")
            for path in sorted(folder.glob("*.py")):
                if path != init:
                    lines.append(f"    {path.name:<22} {first_line(path)}")
    return BEGIN + "```text\n" + "\n".join(lines) + "\n```\n" + END


def rewritten(text: str) -> str:
    before, rest = text.split(BEGIN)
    return before + tree() + rest.split(END)[1]


if __name__ == "__main__":
    text = README.read_text(encoding="utf-8")
    if "--check" in sys.argv:
        sys.exit(text != rewritten(text))
    README.write_text(rewritten(text), encoding="utf-8")
