"""Errors of the user, explained in one sentence, which the command line prints before it exits with code 2."""

import errno

SURROUNDINGS = {
    errno.ENOSPC: "free some space and run the same command again",
    errno.EDQUOT: "free some space and run the same command again",
    errno.EFBIG: "the disk, or a limit set for this process, allows no larger files: choose another folder",
    errno.EACCES: "choose another folder, or change its permissions",
    errno.EPERM: "choose another folder, or change its permissions",
    errno.EROFS: "choose another folder",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "a link there leads back to itself: choose another path",
    errno.ENOTDIR: "a part of that path is a file: choose another folder",
}
"""Advice for errors of the machine, not of the program."""


class UserError(ValueError):
    """Bad input: the message names the argument, its value and the way out.

    Example:
        >>> sfumato.load("no-such-folder")
        Traceback (most recent call last):
        sfumato.errors.UserError: model 'no-such-folder' does not exist; give a model folder or the folder of a run
    """


class Interrupted(BaseException):
    """SIGINT or SIGTERM outside a training loop, or a second one; `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
