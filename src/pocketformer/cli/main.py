"""The console script: exit codes and one-line errors (contract 3). Commands live in files of their own."""

import errno
import os
import sys
from collections.abc import Sequence

from pocketformer import ranks
from pocketformer.files import as_text

_DENSE = [f"{task} {work}" for task in ("detect", "segment") for work in ("train", "evaluate")]
_MANY = ("train", "supernet", "search", "evaluate", *_DENSE)  # commands that share their work between processes
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


def main(arguments: Sequence[str] | None = None) -> None:
    """0 success; 2 a user's mistake; 1 the work failed or was refused; 130 interrupted."""
    if arguments is None:
        _speak_utf8()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _run(arguments or ["--help"])
    except KeyboardInterrupt:  # while the first modules were still being read
        code = _fail("interrupted", 130)
    sys.exit(code)


def _speak_utf8() -> None:
    """Starts this command again in Python's UTF-8 mode where the locale has another encoding: names of files and
    classes are UTF-8 in all that is written and read, and libraries take no others."""
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        environment = {**os.environ, "PYTHONUTF8": "1"}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _run(arguments: list[str]) -> int:
    import typer

    from pocketformer.cli.app import app
    from pocketformer.errors import UserError, WorkError

    # Some versions of typer bring a click of their own: the class is found through one that typer names.
    usage = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "UsageError")
    command = typer.main.get_command(app)
    if not ranks.first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (results are the first process's to tell)
    try:
        # Not `app()`, which reports errors in boxes and takes any EOFError for Ctrl-C.
        with command.make_context("pocketformer", arguments) as context:
            _check_ranks(arguments)
            with ranks.joined():
                command.invoke(context)
        sys.stdout.flush()
    except UserError as error:
        return _fail(error, 2)
    except WorkError as error:
        return _fail(error, 1)
    except (typer.Abort, KeyboardInterrupt):
        return _fail("interrupted", 130)
    except typer.Exit as stop:
        return stop.exit_code
    except usage as error:
        path = error.ctx.command_path if error.ctx else "pocketformer"
        return _fail(f"{error.format_message().rstrip('.')} (see {path} --help)", 2)
    except (MemoryError, RuntimeError) as error:
        said = str(error)
        if isinstance(error, RuntimeError) and "can't allocate memory" not in said and "out of memory" not in said:
            raise  # those are torch's words for it, on the processor and on a GPU
        return _fail("out of memory: smaller images or batches, or a smaller network, need less", 1)
    except BrokenPipeError:  # whoever read stdout has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno in _DISK:
            where = f" ({error.filename})" if error.filename else ""
            return _fail(f"{os.strerror(error.errno)}{where}; what was written before is whole", 1)
        if error.filename is None or error.strerror is None:
            raise
        return _fail(f"{error.filename}: {error.strerror}", 2)
    return 0


def _check_ranks(arguments: list[str]) -> None:
    from pocketformer.errors import UserError

    words = [word for word in arguments if not word.startswith("-")]
    command = " ".join(words[: 2 if words[:1] in (["detect"], ["segment"]) else 1])
    if ranks.count() > 1 and command not in _MANY:
        raise UserError(f"{command} runs in one process; under torchrun there are {', '.join(_MANY)}")


def _fail(message: object, code: int) -> int:
    text = " ".join(as_text(str(message)).split())
    if ranks.tells():
        print(f"pocketformer: {text}", file=sys.stderr)
    return code
