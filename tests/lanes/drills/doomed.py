"""`mcis train` that gets SIGKILL a moment after it has touched a path for the n-th time.

    python tests/lanes/drills/doomed.py PATTERN NTH SECONDS --task=...

Python tells of each file it is about to open, rename, make or remove (PEP 578). The first time can be exactly before a
file appears, the next before it is renamed; with some seconds more it falls into what is written meanwhile, by Orbax in
C++ and in threads.
"""

import fnmatch
import os
import signal
import sys
import threading
import time

TOUCHING = ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree")


def doom(pattern: str, nth: int, seconds: float) -> None:
    """Have this process killed so long after the `nth` time, from 0, that a path of `pattern` is touched."""
    seen = [0]

    def die() -> None:
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, args: tuple) -> None:
        if event not in TOUCHING:
            return
        if not any(fnmatch.fnmatch(os.fsdecode(path), pattern) for path in args if isinstance(path, str | os.PathLike)):
            return
        seen[0] += 1
        if seen[0] == nth + 1:
            threading.Thread(target=die, daemon=True).start() if seconds else die()

    sys.addaudithook(hook)


if __name__ == "__main__":
    from mcis.cli.train import main

    doom(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
    sys.exit(main(sys.argv[4:]))
