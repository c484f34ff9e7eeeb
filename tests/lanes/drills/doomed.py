"""`mcis train` that kills itself by SIGKILL some time after the n-th operation on a path.

    python tests/lanes/drills/doomed.py PATTERN NTH SECONDS --task=...

Python reports each file that it is about to open, rename, make or remove to audit hooks (PEP 578). So the process can
end exactly before a file appears or before it is renamed. With some seconds of delay it ends while Orbax writes, in C++
and in threads.
"""

import fnmatch
import os
import signal
import sys
import threading
import time

EVENTS = ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree")


def doom(pattern: str, nth: int, seconds: float) -> None:
    """Have this process killed some seconds after the `nth` operation, from 0, on a path that matches `pattern`."""
    seen = [0]

    def die() -> None:
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, args: tuple) -> None:
        if event not in EVENTS:
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
