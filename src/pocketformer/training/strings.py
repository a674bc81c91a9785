"""A list of strings that costs forked processes no memory."""

import os
from collections.abc import Iterable

import numpy as np


class Strings:
    """An immutable list of strings, such as the names of a million files.

    Kept in one block of bytes. A Python list of strings is written to by whoever reads it (each string counts its
    references), so every process that loads images would come to own a copy of it, page by page.
    """

    def __init__(self, strings: Iterable[str]):
        encoded = [os.fsencode(string) for string in strings]
        self._ends = np.cumsum([0, *map(len, encoded)])
        self._bytes = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        return os.fsdecode(self._bytes[self._ends[index] : self._ends[index + 1]])
