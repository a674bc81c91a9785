"""Measures the house: files, lines, folders, cycles of imports, names that are used twice, long functions.

python scripts/house.py [SOURCE] [--json]
"""

import argparse
import ast
import json
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "pocketformer"
LONG = 50  # lines of a function


def modules(source: Path) -> dict[str, Path]:
    """{dotted name: file}, `__init__.py` as its folder."""
    found = {}
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(tree: ast.AST, known: dict[str, Path]) -> set[str]:
    """Modules of the package that a file imports, those that functions import included. `from room import thing` is
    of the module `room.thing` where there is one, else of `room`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in known else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in known}
    return found


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that reach one another (Tarjan's strongly connected components of more than one)."""
    index, low, stack, groups = {}, {}, [], []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(graph.get(name, ())):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                groups.append(sorted(group))

    for name in sorted(graph):
        if name not in index:
            visit(name)
    return groups


def long_functions(name: str, tree: ast.AST) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            if lines > LONG:
                found.append((lines, f"{name}.{node.name}"))
    return found


def measured(source: Path) -> dict:
    files = modules(source)
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in files.items()}
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in files.items()}
    folders = Counter(path.parent for path in files.values() if path.name != "__init__.py")
    largest, most = folders.most_common(1)[0]
    graph = {name: imported(tree, files) - {name} for name, tree in trees.items()}
    names = defaultdict(list)
    for name, path in files.items():
        if path.name != "__init__.py":
            names[path.stem].append(name)
    classes = defaultdict(list)
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                classes[node.name].append(name)
    return {
        "files": len(files),
        "lines": sum(lines.values()),
        "median lines of a file": sorted(lines.values())[len(lines) // 2],
        "largest folder": {str(largest.relative_to(source)): most},
        "cycles of imports": cycles(graph),
        "names of files used twice": {stem: where for stem, where in sorted(names.items()) if len(where) > 1},
        "names of classes used twice": {name: where for name, where in sorted(classes.items()) if len(where) > 1},
        f"functions above {LONG} lines": sorted(
            (f for n, t in trees.items() for f in long_functions(n, t)), reverse=True
        ),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="?", type=Path, default=ROOT / "src" / PACKAGE)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    result = measured(given.source.resolve())
    if given.json:
        print(json.dumps(result, indent=2))
    else:
        for what, value in result.items():
            if isinstance(value, list | dict) and what != "largest folder":
                print(f"{what}: {len(value)}")
                rows = value.items() if isinstance(value, dict) else value
                for row in rows:
                    print("   ", *([row[0], "in", ", ".join(row[1])] if isinstance(value, dict) else map(str, row)))
            else:
                print(f"{what}: {value}")
