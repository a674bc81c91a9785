"""Torch's files read without importing what they name: tensors and plain values come out, of all else a placeholder.

`torch.load(weights_only=True)` refuses a file for one harmless object beside its weights. Here a name in a pickle stays
a name: nothing is looked up, called or given attributes but what is in this file, whatever the pickle says.
"""

import io
import math
import pickle
import re
import struct
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import torch

_KEYS = str | bytes | int | float | None  # what is hashed as it is: the hash of nested tuples may take for ever
_EXPANDED = 2**24  # elements of a tensor that repeats those of its storage
_SWOLLEN = 2**28  # bytes that an archive may unpack to beyond four times its own
_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001  # of files that are no archives, before torch 1.6
# What no honest file of weights names. Here it could do nothing either: this is for the person to know.
_CODE = re.compile(
    r"(os|posix|nt|sys|subprocess|socket|shutil|runpy|importlib|imp|ctypes|code|codeop|pty|pdb|bdb|webbrowser|marshal"
    r"|pickle|_pickle|cloudpickle|dill|commands|timeit|cProfile|profile|pydoc|torch\.(load|hub|jit)|types\.(Code|Function)Type"
    r"|builtins\.(eval|exec|compile|open|__import__|input|breakpoint|globals|locals|setattr|delattr))(\..*)?"
)
_DTYPES = {
    **{"Float": torch.float32, "Double": torch.float64, "Half": torch.half, "BFloat16": torch.bfloat16},
    **{"Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8},
    **{"Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128},
}


@dataclass(frozen=True)
class Name:
    """What a pickle names: a class or a function that is not imported."""

    path: str


@dataclass(eq=False)
class Placeholder:
    """An object of a class that is not imported: its class' name, what it was to be made of, and what it holds."""

    name: str
    arguments: tuple = ()
    state: Any = None
    items: list = field(default_factory=list)
    entries: dict = field(default_factory=dict)

    @property
    def attributes(self) -> dict:
        return {**(self.state if isinstance(self.state, dict) else {}), **self.entries}


@dataclass(frozen=True)
class _Storage:
    data: bytearray
    dtype: torch.dtype | None  # None: bytes, whose type each tensor says; or of a kind that is not read


def read(path: Path) -> tuple[Any, tuple[str, ...]]:
    """What a file of torch holds, and all that it names, in order. Raises an exception of any kind for another file."""
    with open(path, "rb") as file:
        return _archive(file) if zipfile.is_zipfile(file) else _bare(file)


def swollen(path: Path) -> int | None:
    """The bytes that an archive would unpack to, where they are many more than those of the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(info.file_size for info in archive.infolist())
    except (OSError, zipfile.BadZipFile):
        return None
    return size if size > _SWOLLEN + 4 * path.stat().st_size else None


def is_program(path: Path) -> bool:
    """Whether it is TorchScript, which is code."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def code_among(names: tuple[str, ...]) -> str | None:
    """The first name that stands for running something."""
    return next((name for name in names if _CODE.fullmatch(name)), None)


def _archive(file: BinaryIO) -> tuple[Any, tuple[str, ...]]:
    with zipfile.ZipFile(file) as archive:
        (inside,) = (name for name in archive.namelist() if name.endswith("/data.pkl") or name == "data.pkl")
        root = inside.removesuffix("data.pkl")
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("not in this machine's byte order")
        storages: dict[str, _Storage] = {}

        def storage(identity: tuple) -> _Storage:
            kind, key = identity[1].path, identity[2]
            if not isinstance(key, str | int):
                raise ValueError("a storage without a name")
            if key not in storages:
                storages[key] = _Storage(bytearray(archive.read(f"{root}data/{key}")), _dtype(kind))
            return storages[key]

        reader = _Reader(io.BytesIO(archive.read(inside)), storage)
        return reader.load(), tuple(reader.names)


def _bare(file: BinaryIO) -> tuple[Any, tuple[str, ...]]:
    """One pickle after another, then the storages' bytes; or a single pickle, as Python's `pickle` writes it."""
    left = file.seek(0, io.SEEK_END)
    file.seek(0)
    storages: dict[str, _Storage] = {}

    def storage(identity: tuple) -> _Storage:
        nonlocal left
        if identity[0] != "storage":
            return Placeholder("source")
        _, kind, key, _, count, view = identity
        if view is not None:
            raise ValueError("a view of a storage")
        if key not in storages:
            dtype = _dtype(kind.path)
            size = count * (dtype.itemsize if dtype else 1)
            left -= size
            if size < 0 or left < 0:
                raise ValueError("storages larger than the file")
            storages[key] = _Storage(bytearray(size), dtype)
        return storages[key]

    reader = _Reader(file, storage)
    value = reader.load()
    if not isinstance(value, int):
        return value, tuple(reader.names)
    version, _ = (_Reader(file, storage).load() for _ in range(2))
    if not isinstance(version, int) or (value, version) != (_MAGIC, _VERSION):
        raise ValueError("no file of torch")
    reader = _Reader(file, storage)
    value = reader.load()
    for key in _Reader(file, storage).load():
        data = storages[key].data
        struct.unpack("<q", file.read(8))  # how many elements, which is known
        if file.readinto(data) != len(data):
            raise EOFError
    return value, tuple(reader.names)


def _dtype(kind: str) -> torch.dtype | None:
    name = kind.rpartition(".")[2].removesuffix("Storage")
    return _DTYPES.get(name)


class _Reader(pickle._Unpickler):  # Python's own: every step of it can be read, and those below are replaced
    """A pickle whose names stay `Name`s, and whose objects become plain values or `Placeholder`s."""

    dispatch: ClassVar = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: BinaryIO, storage: Any):
        super().__init__(file, encoding="latin1")
        self.storage, self.names = storage, {}

    def find_class(self, module: str, name: str) -> Name:
        path = f"{module.replace('__builtin__', 'builtins')}.{name}"
        self.names[path] = None
        return Name(path)

    def persistent_load(self, identity: Any) -> Any:
        return self.storage(identity)

    def get_extension(self, code: int) -> None:
        raise pickle.UnpicklingError("an extension")

    def _instantiate(self, kind: Any, arguments: list) -> None:
        self.append(_made(kind, tuple(arguments)))

    def _reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = _made(self.stack[-1], tuple(arguments))

    def _new(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = _made(self.stack[-1], tuple(arguments))

    def _new_by_name(self) -> None:
        self.stack.pop()
        self._new()

    def _build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if isinstance(made, Placeholder):
            if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):  # of slots
                state = {**(state[0] if isinstance(state[0], dict) else {}), **state[1]}
            made.state = state

    def _append(self) -> None:
        value = self.stack.pop()
        _items(self.stack[-1]).append(value)

    def _appends(self) -> None:
        values = self.pop_mark()
        _items(self.stack[-1]).extend(values)

    def _set(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _entries(self.stack[-1])[_key(key)] = value

    def _sets(self) -> None:
        values = self.pop_mark()
        _entries(self.stack[-1]).update(_pairs(zip(values[::2], values[1::2], strict=True)))

    def _dict(self) -> None:
        values = self.pop_mark()
        self.append(dict(_pairs(zip(values[::2], values[1::2], strict=True))))

    def _empty_set(self) -> None:  # a list does
        self.append([])

    def _frozen_set(self) -> None:
        values = self.pop_mark()
        self.append(values)

    def _bytes(self) -> None:  # Python's takes the memory for any length that is stated
        self.append(self.read(struct.unpack("<Q", self.read(8))[0]))

    for _code, _step in (
        (pickle.REDUCE, _reduce),
        (pickle.NEWOBJ, _new),
        (pickle.NEWOBJ_EX, _new_by_name),
        (pickle.BUILD, _build),
        (pickle.APPEND, _append),
        (pickle.APPENDS, _appends),
        (pickle.SETITEM, _set),
        (pickle.SETITEMS, _sets),
        (pickle.ADDITEMS, _appends),
        (pickle.DICT, _dict),
        (pickle.EMPTY_SET, _empty_set),
        (pickle.FROZENSET, _frozen_set),
        (pickle.BYTEARRAY8, _bytes),
    ):
        dispatch[_code[0]] = _step


def _items(made: Any) -> list:
    if not isinstance(made, list | Placeholder):
        raise pickle.UnpicklingError("items of no list")
    return made if isinstance(made, list) else made.items


def _entries(made: Any) -> dict:
    if not isinstance(made, dict | Placeholder):
        raise pickle.UnpicklingError("entries of no dictionary")
    return made if isinstance(made, dict) else made.entries


def _key(key: Any) -> Any:
    return key if isinstance(key, _KEYS | Name | Placeholder | torch.Tensor) else Placeholder(type(key).__name__)


def _pairs(entries: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
    return ((_key(key), value) for key, value in entries)


def _made(kind: Any, arguments: tuple) -> Any:
    """What calling a name stands for: tensors, the collections of Python, else a placeholder."""
    if not isinstance(kind, Name):
        raise pickle.UnpicklingError("a call of what is no name")
    first = arguments[0] if arguments else None
    match kind.path:
        case "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2":
            return _tensor(*arguments[:4])
        case "torch._utils._rebuild_tensor_v3":
            return _tensor(*arguments[:4], vars(torch).get(arguments[6].path.removeprefix("torch.")))
        case "torch._utils._rebuild_sparse_tensor" if len(arguments[1]) == 4:  # no network's, which is told by its name
            return torch.sparse_coo_tensor(*arguments[1][:3], check_invariants=True)
        case "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state":
            return first
        case "torch._tensor._rebuild_from_type_v2":
            return _made(first, tuple(arguments[2]))
        case "collections.OrderedDict" | "collections.defaultdict" | "collections.Counter" | "builtins.dict":
            entries = first.items() if isinstance(first, dict) else first if isinstance(first, list) else ()
            return dict(_pairs(entries))
        case "builtins.set" | "builtins.frozenset" | "builtins.list" | "collections.deque":
            return [*first] if isinstance(first, list | tuple) else []
        case "builtins.tuple" | "torch.Size":
            return tuple(first) if isinstance(first, list | tuple) else ()
        case "_codecs.encode" if isinstance(first, str):
            return first.encode("latin1")
        case "torch.storage._load_from_bytes" if isinstance(first, bytes):  # a storage in one of Python's pickles
            return _bare(io.BytesIO(first))[0]
        case "copyreg._reconstructor" if isinstance(first, Name):  # of the oldest pickles: class, base, its value
            held = arguments[2] if len(arguments) > 2 and isinstance(arguments[2], dict) else {}
            return Placeholder(first.path, entries=dict(held))
    return Placeholder(kind.path, arguments)


def _tensor(storage: _Storage, offset: int, size: tuple, stride: tuple, dtype: torch.dtype | None = None):
    dtype = dtype or storage.dtype
    if not isinstance(dtype, torch.dtype):
        return Placeholder("a tensor of another kind")
    if min((offset, *size, *stride)) < 0:
        raise pickle.UnpicklingError("a tensor of no size")
    if math.prod(size) > max(_EXPANDED, len(storage.data) // dtype.itemsize):
        raise pickle.UnpicklingError("a tensor of more elements than its storage")
    if not math.prod(size):
        return torch.empty(tuple(size), dtype=dtype)
    whole = torch.frombuffer(storage.data, dtype=dtype, count=len(storage.data) // dtype.itemsize)
    return whole.as_strided(tuple(size), tuple(stride), offset)  # which checks that it lies inside
