"""A reader of uploads that can be made to break."""

import os
import signal
import time

import numpy as np

from mcis.web import reader


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


reader.OPERATIONS.update(
    {"hang": hang, "crash": crash, "raise": raise_what_nobody_expects, "take": take, "chatter": chatter}
)

if __name__ == "__main__":
    reader.main()
