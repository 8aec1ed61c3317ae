"""Mistakes of the user, told in one sentence; the command line prints that and exits with code 2."""


class UserError(ValueError):
    """Bad input: the message names the argument, its value and the way out."""
