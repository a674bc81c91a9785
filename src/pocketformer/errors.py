"""The two ways in which work ends badly; the command line turns them into one line and an exit code."""


class UserError(ValueError):
    """A mistake of the caller: bad argument, file or folder. Exit code 2."""


class WorkError(RuntimeError):
    """The work itself failed or was refused: a wrong export, an impossible budget, a full disk. Exit code 1."""
