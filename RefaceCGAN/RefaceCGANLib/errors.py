"""The errors a user can meet. Each message is one sentence that says what is wrong and how to mend it."""

from __future__ import annotations


class RefaceError(Exception):
    """Base of all errors shown to a user; `exit_status` is what the command line returns for it."""

    exit_status = 2


class InputError(RefaceError):
    """The call or the input is unusable (exit status 2)."""


class CheckError(RefaceError):
    """The result failed a check, so nothing is written (exit status 3: a privacy tool fails closed)."""

    exit_status = 3


class Cancelled(RefaceError):
    """The user cancelled (exit status 130)."""

    exit_status = 130
