"""A lock on an open file that other processes heed, and that ends with the process however it ends."""

from __future__ import annotations

import errno
import os
import sys

UNSUPPORTED = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}
BEYOND = 2**40  # Windows keeps others from reading what is locked, so there it is a byte that no file has


def try_lock(descriptor: int) -> bool:
    """Lock the open file for this process, without waiting; False where another one holds it.

    True too on file systems that know no locks: nobody can hold one there.
    """
    try:
        _lock(descriptor)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EDEADLK):  # Windows
            return False
        if error.errno in UNSUPPORTED:
            return True
        raise
    return True


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        place = os.lseek(descriptor, 0, os.SEEK_CUR)
        os.lseek(descriptor, BEYOND, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        finally:
            os.lseek(descriptor, place, os.SEEK_SET)
else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
