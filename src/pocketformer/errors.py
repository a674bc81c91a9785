"""The two ways in which work ends badly; the command line turns them into one line and an exit code."""


class UserError(ValueError):
    """A mistake of the caller: bad argument, file or folder. Exit code 2."""


class WorkError(RuntimeError):
    """The work itself failed or was refused: a wrong export, an impossible budget, a full disk. Exit code 1."""


def first_line(error: Exception) -> str:
    """What another's exception says, as one line that is not too long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
