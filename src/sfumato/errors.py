"""Mistakes of the user, told in one sentence; the command line prints that and exits with code 2."""

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
"""What a user can do about errors that are the machine's, not the program's."""


class UserError(ValueError):
    """Bad input: the message names the argument, its value and the way out."""


class Interrupted(BaseException):
    """SIGINT or SIGTERM while nothing finishes its step first; `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
