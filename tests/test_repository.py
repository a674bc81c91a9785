"""The repository keeps its own rules: a true README, files that can be read in one sitting, imports downwards."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src/pocketformer"
# From top to bottom; a room imports only rooms further down (and the three modules under all of them).
ROOMS = [
    *("cli", "pipelines", "report", "dense", "training", "search"),
    *("devices", "deploy", "runtimes", "supernet", "models", "architecture"),
]
GROUND = {"errors", "files", "progress", "ranks", "runs"}


def test_the_readme_shows_the_tree_as_it_is():
    check = [sys.executable, str(ROOT / "scripts/readme_tree.py"), "--check"]
    assert subprocess.run(check).returncode == 0, "run python scripts/readme_tree.py"


def test_files_can_be_read_in_one_sitting():
    long = {p.name: n for p in SOURCE.rglob("*.py") if (n := len(p.read_text().splitlines())) > 320}
    assert not long


def test_every_file_says_what_it_is():
    silent = [p for p in ROOT.rglob("*.py") if ".venv" not in p.parts and not _docstring(p).strip()]
    assert not silent


def _docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text())) or ""


def test_imports_run_downwards():
    wrong = []
    for path in SOURCE.rglob("*.py"):
        room = path.relative_to(SOURCE).parts[0]
        if room not in ROOMS:
            continue
        for target in _imported_rooms(path):
            if target not in GROUND and ROOMS.index(target) < ROOMS.index(room):
                wrong.append(f"{path.relative_to(SOURCE)} imports {target}")
    assert not wrong


def test_the_search_imports_neither_supernet_nor_devices():
    found = {room for path in (SOURCE / "search").glob("*.py") for room in _imported_rooms(path)}
    assert found <= {"architecture", "search", "errors", "ranks"}


def _imported_rooms(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pocketformer"):
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return found
