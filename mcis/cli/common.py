"""What the commands share: options of every command, parsing, places in the user's folders. No JAX until asked."""

import contextlib
import dataclasses
import io
import os
import pathlib
import platform
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of every command that reads prepared data.

    Attributes:
      data_dir: where prepared data sets are; by default TFDS's folder ($TFDS_DATA_DIR or ~/tensorflow_datasets).
    """

    data_dir: str | None = None


def parse_dataclass(cls: Any, argv: Sequence[str], prog: str, default: Any = None) -> Any:
    """An instance of a dataclass from command-line options; exits 2 and lists the options where one is unknown."""
    import tyro

    keywords = {} if default is None else {"default": default}
    try:
        return tyro.cli(cls, args=list(argv), prog=prog, **keywords)
    except BrokenPipeError:  # `mcis predict --help | head`
        _hush()
        sys.exit(1)
    except SystemExit as stop:
        if stop.code not in (0, None):
            # the help text is the one public list of a dataclass's options
            text = io.StringIO()
            with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
                tyro.cli(cls, args=["--help"], prog=prog, **keywords)
            first_column = re.findall(r"(?m)^[^\w-]{1,3}((?:--?[a-z][\w.-]*(?:, )?)+)", text.getvalue())
            names = dict.fromkeys(name for name in ", ".join(first_column).split(", ") if name.startswith("--"))
            print(f"options of {prog}: {' '.join(names)}", file=sys.stderr)
        raise


def exit_status(prog: str, command: Callable[[], int]) -> int:
    """Run a command; an error becomes a line on standard error and an exit status, the same for every command.

    Returns:
      the command's own status; 2 where it cannot do what was asked (a ValueError: an option, a name, data or a file
      that is wrong or not there), 1 where it broke off (an OSError, a loss that is not finite, a reader of its output
      that is gone), 130 where it was interrupted. What was asked to stop, and has saved its state, ends with
      INTERRUPTED.
    """
    try:
        status = command()
        if sys.stdout is not None:  # closed: `>&-`
            sys.stdout.flush()  # now, so that a reader that is gone is met here
        return status
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `mcis info | head -1`: nothing is wrong that anybody would read
        _hush()
        return 1
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


def _hush() -> None:
    """Let what is still to be written go nowhere: nobody reads it any more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


INTERRUPTED = 75
"""Exit status of what was asked to stop and can go on: EX_TEMPFAIL, at which a scheduler tries again."""


@contextlib.contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """A function that says whether SIGTERM or SIGINT has come. A second one of the same stops the process at once."""
    came: list[int] = []

    def note(number: int, _: Any) -> None:
        came.append(number)
        signal.signal(number, before[number])
        # not print, which may be in the middle of a line just now and must not be entered twice
        os.write(2, b"asked to stop: what is in hand is finished and saved; asked again, it stops at once\n")

    before: dict[int, Any] = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


MALLOC = ((-1, -1), (-4, 0), (-8, 1))
"""What glibc's malloc is told, parameter and value of mallopt(3): no M_TRIM_THRESHOLD, M_MMAP_MAX 0, M_ARENA_MAX 1, so
that nothing goes back to the system, and all threads share one heap."""


def keep_memory() -> None:
    """Have malloc keep the memory that the process once had; nothing where the C library is not glibc.

    A compiled program asks for its arrays anew in each call. glibc takes blocks of 32 MiB and more from the system each
    time, and on a CPU the first touch of their pages is up to a quarter of a training step (docs/performance.md). Only
    for a process that is nothing but a command; what the user tells malloc by an environment variable is obeyed.
    """
    told = any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ)
    if platform.libc_ver()[0] == "glibc" and not told:
        import ctypes

        for parameter, value in MALLOC:
            ctypes.CDLL(None).mallopt(parameter, value)


def print_table(table: Any) -> None:
    """A `rich` table on standard output; in a file or a pipe, which has no width, nothing is cut."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 30 + 28 * len(table.columns)
    Console(width=width, markup=False).print(table)  # "[" is no markup here


def cache_dir() -> pathlib.Path:
    """The user's cache folder for mcis: $XDG_CACHE_HOME/mcis or ~/.cache/mcis."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mcis"


def enable_compilation_cache() -> None:
    """Keep compiled programs between runs, unless JAX_COMPILATION_CACHE_DIR already says where."""
    import jax

    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
