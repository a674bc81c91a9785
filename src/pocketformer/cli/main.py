"""The console script: exit codes and one-line errors (contract 3). Commands live in files of their own."""

import errno
import os
import sys

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


def main() -> None:
    """0 success; 2 a user's mistake; 1 the work failed or was refused; 130 interrupted."""
    import click

    from pocketformer.cli.app import app
    from pocketformer.errors import UserError, WorkError

    try:
        code = app(standalone_mode=False)
    except UserError as error:
        code = _fail(error, 2)
    except WorkError as error:
        code = _fail(error, 1)
    except (click.exceptions.Abort, KeyboardInterrupt):
        code = _fail("interrupted", 130)
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except click.ClickException as error:  # what typer would print in a box
        code = _fail(error.format_message(), 2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except PermissionError as error:
        code = _fail(f"no permission to use {error.filename}", 2)
    except OSError as error:
        if error.errno not in _DISK:
            raise
        where = f" ({error.filename})" if error.filename else ""
        code = _fail(f"{os.strerror(error.errno)}{where}; what was written so far is whole", 1)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: object, code: int) -> int:
    text = " ".join(str(message).split())
    print(f"pocketformer: {text}", file=sys.stderr)
    return code
