"""Mistakes of the user, told in one sentence; the command line prints that and exits with code 2."""


class UserError(ValueError):
    """Bad input: the message names the argument, its value and the way out."""


class Interrupted(BaseException):
    """SIGINT or SIGTERM while nothing finishes its step first; `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
