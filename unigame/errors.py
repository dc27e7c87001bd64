"""The one error type that users are meant to see."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input from the user: a setting, a file, a checkpoint, a record.

    The message is one clear line that names the value that came in, the likely cause and the fix.
    The command line prints it without a traceback and exits with code 2. Programming mistakes of
    our own are ``assert`` or other exceptions, and keep their traceback.
    """


class OneProcessError(UserError):
    """What one process of several met alone; the command line says it though it is not the first.

    All other errors of users are met by every process alike, and said by the first.
    """


class Diverged(UserError):
    """A loss, a gradient norm or a weight is not finite."""
