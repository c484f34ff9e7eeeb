"""A reader that can be made to break."""

import os
import pathlib
import signal
import time

import numpy as np

from mcis.imaging import worker


def hang():
    time.sleep(60)


def crash():
    os.kill(os.getpid(), signal.SIGSEGV)


def raise_what_nobody_expects():
    raise RuntimeError("CANARY")


def take(size):
    return {"sum": int(np.ones(size, np.uint8)[:: 1 << 12].sum())}, b""


def chatter():
    os.write(1, b"a decoder's words on standard output\n")
    return {"fine": True}, b"123"


def read(path, frame):
    """What a file's name says, else what reading reads."""
    do = {"crash": crash, "hang": hang, "take": lambda: take(1 << 30)}.get(pathlib.Path(path).stem)
    return worker.read(path, frame) if do is None else do()


worker.OPERATIONS.update(
    {"read": read, "hang": hang, "crash": crash, "raise": raise_what_nobody_expects, "take": take, "chatter": chatter}
)

if __name__ == "__main__":
    worker.main()
