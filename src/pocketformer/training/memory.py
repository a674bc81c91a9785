"""How this process gets its memory from the operating system."""

import ctypes
import platform

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # glibc's malloc.h


def keep_freed_memory() -> bool:
    """Keeps freed memory for the next tensor instead of giving it back; whether that could be arranged.

    glibc maps every block above 32 MB anew and unmaps it when it is freed, so that each large activation of each step
    is zeroed by the kernel page by page: a quarter of S0's training step at 224 px (`benchmarks/training.py`). The
    process stays as large as it has once been. Linux with glibc only; elsewhere nothing happens.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return all(libc.mallopt(*option) for option in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, 64 << 20)))
