"""A folder's images as they lie there: litter is passed over with a count, and loops of links end."""

import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property

from PIL import Image

from pocketformer.training.sources import some

# Folders and files that systems and programs put beside images, in lower case.
SYSTEM_FOLDERS = {
    *("__macosx", "@eadir", "#recycle", "@recycle", "#snapshot", "@recently-snapshot", "lost+found", "lost.dir"),
    *("$recycle.bin", "recycler", "system volume information", "__pycache__", "network trash folder"),
}
SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "picasa.ini", "icon\r", "synoindex_media_info"}
_SYSTEM = re.compile(r"(.*\.lrdata|found\.\d{3}|synophoto_thumb.*|synofile_thumb.*)", re.IGNORECASE | re.DOTALL)
# Images of these endings are to be read, or told that they cannot be; Pillow adds what it opens.
_ENDINGS = {
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".heic",
    ".heif",
    ".hif",
    ".avif",
    ".jxl",
}
_NO_PICTURES = {".h5", ".hdf", ".bufr", ".grib", ".iim", ".mpg", ".mpeg", ".pdf", ".ps"}
# Kept beside images for other reasons: never looked into.
_SIDE = {
    *(".txt", ".json", ".jsonl", ".xml", ".csv", ".tsv", ".yaml", ".yml", ".xmp", ".aae", ".thm", ".db", ".ini"),
    *(".md", ".html", ".pdf", ".mat", ".npy", ".npz", ".zip", ".tar", ".gz", ".mov", ".mp4", ".avi", ".mpg", ".wav"),
    *(".py", ".ipynb", ".log", ".pkl", ".url", ".lnk", ".md5", ".sha1", ".h5", ".part", ".crdownload", ".tmp"),
}
# What a camera's sensor saw: of such a file Pillow opens a small preview, and often its JPEG lies beside it.
_RAW = {
    *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".iiq", ".k25", ".kdc", ".mef", ".mos"),
    *(".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"),
}
_THUMBNAILS = re.compile(r"_?(thumb|thumbnail|preview)s?", re.IGNORECASE)
_RUN = "folder of a run"
_SIGNS = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|RIFF....WEBP|II\*\x00|MM\x00\*|....ftyp(heic|heix|mif1|avif)", re.DOTALL
)


@dataclass(eq=False)
class Tree:
    """A folder: `files` are the paths of images directly in it, `folders` its sub-folders, both sorted by bytes.

    `side` are the names of files that are no images; `passed` counts by kind what was passed over, `again` are links
    to folders that are read anyway, `unnamed` counts images known by their first bytes, for want of an image's ending.
    """

    name: str
    path: str
    files: list[str] = field(default_factory=list)
    folders: list["Tree"] = field(default_factory=list)
    side: list[str] = field(default_factory=list)
    passed: Counter = field(default_factory=Counter)
    again: list[str] = field(default_factory=list)
    unnamed: int = 0

    def walk(self) -> Iterator["Tree"]:
        """This folder and all below it."""
        waiting = [self]
        while waiting:
            tree = waiting.pop()
            yield tree
            waiting += tree.folders

    @cached_property
    def count(self) -> int:
        """Images in it, at any depth. Known once the whole is read."""
        return sum(len(tree.files) for tree in self.walk())

    def images(self) -> list[str]:
        """Paths of all images in it; the order of a file system is not reproducible."""
        return sorted((path for tree in self.walk() for path in tree.files), key=os.fsencode)

    @property
    def holding(self) -> list["Tree"]:
        """Sub-folders with images at any depth."""
        return [folder for folder in self.folders if folder.count]

    @property
    def empty(self) -> bool:
        """Whether there is no file of any kind in it."""
        return not any(tree.files or tree.side or tree.passed or tree.again for tree in self.walk())


def read_tree(root: str) -> Tree:
    """Lists a folder, its sub-folders and what links in it lead to; reads no image.

    Folders come before links, and each folder is read once: links to what is read anyway, or to a folder around it,
    are passed over. Raises `OSError` where a folder cannot be listed.
    """
    seen, path = set(), os.path.realpath(root)
    while path != os.path.dirname(path):  # what a link must not lead back to
        path = os.path.dirname(path)
        seen.add(_identity(path))
    top = Tree(os.path.basename(os.path.abspath(root)), root)
    links = _read(top, seen)
    while links:  # by generations, so that the order of the file system decides nothing
        later: list[tuple[Tree, Tree]] = []
        for parent, tree in sorted(links, key=lambda link: os.fsencode(link[1].path)):
            if _identity(tree.path) in seen:
                parent.again.append(f"{tree.path} → {os.path.realpath(tree.path)}")
                continue
            later += _read(tree, seen)
            parent.folders = _sorted([*parent.folders, tree])
        links = later
    _pass_thumbnails(top)
    _pass_runs(top)
    return top


def passed_over(classes: Iterable[Tree], around: Iterable[Tree]) -> list[str]:
    """What the person is told of the files and folders that were passed over in the folders of classes, at any depth,
    and in those around them."""
    counts, again, unnamed = Counter(), [], 0
    for tree in classes:
        for part in tree.walk():
            counts.update(part.passed)
            again += part.again
            counts.update(f"{ending(name) or 'unnamed'} file" for name in part.side)
            unnamed += part.unnamed
    for tree in around:
        counts.update(tree.passed)
        again += tree.again
    notes = []
    if counts:
        kinds = [f"{n} {_plural(kind, n)}" for kind, n in sorted(counts.items(), key=lambda kind: (-kind[1], kind[0]))]
        more = f", … ({sum(counts.values())} in all)" if len(kinds) > 8 else ""
        notes.append(f"passed over: {', '.join(kinds[:8])}{more}")
    if again:
        notes.append(f"{len(again)} link{'s' * (len(again) > 1)} to a folder that is read anyway: {some(again)}")
    if unnamed:
        notes.append(f"{unnamed} file{'s' * (unnamed > 1)} without an image's ending read: the content is an image's")
    return notes


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is a system's or a program's, not the person's."""
    low = name.lower()
    return name.startswith(".") or low in SYSTEM_FOLDERS or low in SYSTEM_FILES or bool(_SYSTEM.fullmatch(name))


@cache
def image_endings() -> frozenset[str]:
    """Endings, in lower case, of files that are taken for images."""
    opened = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    return frozenset((_ENDINGS | opened) - _NO_PICTURES - _SIDE - _RAW)


def _read(top: Tree, seen: set) -> list[tuple[Tree, Tree]]:
    """Fills a tree and returns the (parent, folder) of links to folders in it, which are not yet read."""
    links, waiting = [], [top]
    seen.add(_identity(top.path))
    while waiting:
        tree = waiting.pop()
        with os.scandir(tree.path) as entries:
            found = sorted(entries, key=lambda entry: os.fsencode(entry.name))
        names = {entry.name for entry in found}
        if tree is not top and ".lock" in names and not any(ending(name) in image_endings() for name in names):
            tree.passed[_RUN] = 1
            continue
        for entry in found:
            is_link = entry.is_symlink()
            is_folder = _is_folder(entry)
            if is_litter(entry.name):
                _pass_litter(tree, entry.name, is_folder)
            elif not is_folder:
                _add_file(tree, entry, is_link)
            elif is_link:
                links.append((tree, Tree(entry.name, entry.path)))
            elif (identity := _identity(entry.path)) in seen:
                tree.again.append(f"{entry.path} → {os.path.realpath(entry.path)}")
            else:
                seen.add(identity)
                folder = Tree(entry.name, entry.path)
                tree.folders.append(folder)
                waiting.append(folder)
    return links


def _pass_thumbnails(tree: Tree) -> None:
    """Leaves out folders that are called so and hold what lies around them once more."""
    stems = {_stem(path) for path in tree.files}
    for folder in list(tree.folders):
        if _THUMBNAILS.fullmatch(folder.name) and folder.files and {_stem(path) for path in folder.files} <= stems:
            tree.folders.remove(folder)
            tree.passed["folder of thumbnails"] += 1
        else:
            _pass_thumbnails(folder)


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def _pass_runs(tree: Tree) -> None:
    """Leaves out folders of our runs, which `--out` put among the images, and what holds nothing else."""
    for folder in list(tree.folders):
        runs = folder.passed[_RUN]
        if not runs:
            _pass_runs(folder)
            runs = 0 if folder.files or folder.folders or folder.side else folder.passed[_RUN]
        if runs and not folder.count:
            tree.folders.remove(folder)
            tree.passed[_RUN] += runs


def _add_file(tree: Tree, entry: os.DirEntry, is_link: bool) -> None:
    try:
        regular = stat.S_ISREG(entry.stat().st_mode) if is_link else entry.is_file()
    except OSError:  # a link to nothing, or to itself
        if ending(entry.name) in image_endings():
            tree.files.append(entry.path)  # an image that is missing
        else:
            tree.passed["broken link"] += 1
        return
    if not regular:  # a pipe would be waited for
        tree.passed["device or pipe"] += 1
    elif (end := ending(entry.name)) in image_endings():
        tree.files.append(entry.path)
    elif end not in _SIDE | _RAW and _looks_like_an_image(entry.path):
        tree.files.append(entry.path)
        tree.unnamed += 1
    else:
        tree.side.append(entry.name)


def _pass_litter(tree: Tree, name: str, is_folder: bool) -> None:
    hidden = name.startswith(".")
    if is_folder:
        tree.passed["hidden folder" if hidden else f"folder {name}"] += 1
    else:
        tree.passed["hidden file" if hidden else "system's file"] += 1


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _sorted(trees: list[Tree]) -> list[Tree]:
    return sorted(trees, key=lambda tree: os.fsencode(tree.name))


def ending(name: str) -> str:
    """In lower case, with its dot; of a name that has none, nothing."""
    found = os.path.splitext(name)[1].lower()
    return found if re.fullmatch(r"\.[a-z0-9_]{1,12}", found) else ""


def _looks_like_an_image(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return _SIGNS.match(file.read(16)) is not None
    except OSError:
        return False


def _plural(kind: str, count: int) -> str:
    if count == 1:
        return kind
    noun, space, rest = kind.partition(" ")
    if noun in ("folder", "device"):
        return f"{noun}s{space}{rest}"
    return f"{kind}s"
