"""What the commands share: parsing, exit status, signals, cache folders. Importing it imports no JAX."""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import io
import os
import pathlib
import platform
import re
import signal
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import tyro

from mcis import paths
from mcis.inference.options import takes
from mcis.names import meant, no_such

PATH = "a path"
PathText = Annotated[str, PATH]
"""The type of an option that is a path, as in `PathText | None`. `parse_dataclass` replaces ~ and rejects addresses."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of every command that reads prepared data.

    Attributes:
      data_dir: folder of the prepared data sets; by default $TFDS_DATA_DIR or ~/tensorflow_datasets.
    """

    data_dir: Annotated[PathText | None, takes("DIR")] = None


def run(prog: str, cls: Any, command: Callable[[Any], int], argv: Sequence[str]) -> int:
    """The exit status of a command that takes an instance of a dataclass of options."""
    return exit_status(prog, lambda: command(parse_dataclass(cls, argv, prog)))


def parse_dataclass(cls: Any, argv: Sequence[str], prog: str, default: Any = None) -> Any:
    """An instance of a dataclass from command-line options.

    A wrong or unknown option exits with status 2, after all options and then the error are written to standard error.
    ValueError for a path that is none of this machine; see `paths.local_path`.
    """

    def parse(arguments: Sequence[str], compact: bool) -> Any:
        defaults = {} if default is None else {"default": default}
        return tyro.cli(cls, args=list(arguments), prog=prog, compact_help=compact, **defaults)

    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            parsed = parse(argv, compact=not {"-h", "--help"} & set(argv))
        return local_paths(parsed)
    except BrokenPipeError:  # `mcis predict --help | head`
        _discard_output()
        sys.exit(1)
    except SystemExit as stop:
        if stop.code not in (0, None):
            for stream in (sys.stderr, listed := io.StringIO()):
                with contextlib.redirect_stdout(stream), contextlib.suppress(SystemExit):
                    parse(["--help"], compact=True)
            errors.write(_options_meant(argv, listed.getvalue(), errors.getvalue()))
            errors.write(_numbers_meant(errors.getvalue()))
        raise
    finally:
        print(errors.getvalue(), end="", file=sys.stderr)


def _options_meant(argv: Sequence[str], listed: str, said: str) -> str:
    """A line for each misspelt option for which tyro has no suggestion: it compares "--modle=cnn" with its value.

    Args:
      argv: the command line.
      listed: the help, with all options.
      said: tyro's error.
    """
    if "Perhaps you meant" in said or "Arguments similar to" in said:
        return ""
    known = re.findall(r"(?<![\w-])--[a-z][\w.-]*", listed)
    given = [word.partition("=")[0].replace("_", "-") for word in argv if word.startswith("--")]
    questions = {name: meant(name, known) for name in given if name not in known}
    return "".join(f"There is no option {name}.{question}\n" for name, question in questions.items() if question)


def _numbers_meant(said: str) -> str:
    """A line in plain words where an option's value is no number: `said`, tyro's error, has Python's."""
    flat = re.sub(r"[│\s]+", " ", said)
    found = re.search(r"Error parsing (--[\w.-]+):.*?(int\(\) with base 10|convert string to float): ('.*?')", flat)
    if found is None:
        return ""
    option, kind, value = found.groups()
    return f"{option} takes a {'whole ' if kind.startswith('int') else ''}number, not {value}.\n"


def local_paths(options: Any) -> Any:
    """A dataclass of options whose paths, of type PathText, are local ones; so are those of dataclasses in it."""
    found: dict[str, Any] = {}
    for name, kind in typing.get_type_hints(type(options), include_extras=True).items():
        value = getattr(options, name)
        if dataclasses.is_dataclass(value):
            found[name] = local_paths(value)
        elif value is not None and _is_path(kind):
            shown = "" if tyro.conf.Positional in getattr(kind, "__metadata__", ()) else f"--{name.rstrip('_')}"
            several = isinstance(value, tuple)
            local = tuple(paths.local_text(part, shown) for part in (value if several else (value,)))
            found[name] = local if several else local[0]
    found = {name: value for name, value in found.items() if value != getattr(options, name)}
    return dataclasses.replace(options, **found) if found else options


def _is_path(kind: Any) -> bool:
    """Whether a type is PathText, or None or a tuple of it; Annotated or not."""
    return PATH in getattr(kind, "__metadata__", ()) or any(map(_is_path, typing.get_args(kind)))


def exit_status(prog: str, command: Callable[[], int]) -> int:
    """Run a command; turn an error into a line on standard error and an exit status.

    Returns:
      the command's own status; 2 after a ValueError (a wrong option, name or file, missing data); 1 after an OSError, a
      loss that is not finite, or a closed pipe on standard output; 130 after an interrupt. A command that was told to
      stop and has saved its state returns INTERRUPTED itself.
    """
    try:
        status = command()
        if sys.stdout is not None:  # closed: `>&-`
            sys.stdout.flush()  # so that a closed pipe raises here
        return status
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `mcis info | head -1`: no error for the user
        _discard_output()
        return 1
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"{prog}: {_explained(error)}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


def _explained(error: Exception) -> str:
    """The message of an error; of data that are not prepared, whether there is such a data set at all."""
    from mcis.data.dataset import MissingData

    if isinstance(error, MissingData):
        from mcis_datasets.mcis_scans.sources import SOURCES

        if error.source not in SOURCES:
            return no_such("source", error.source, SOURCES)
    return str(error)


def _discard_output() -> None:
    """Send the rest of standard output to the null device: its reader is gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def check_extra(extra: str, *modules: str) -> None:
    """ValueError unless the modules of an optional dependency group of pyproject.toml are installed."""
    if any(importlib.util.find_spec(module) is None for module in modules):
        raise ValueError(f"this command needs an extra: pip install -e '.[{extra}]'")


INTERRUPTED = 75
"""Exit status of a command that was stopped by a signal and can be resumed: EX_TEMPFAIL, on which schedulers retry."""


@contextlib.contextmanager
def stop_requested() -> Iterator[Callable[[], bool]]:
    """A function that tells whether SIGTERM or SIGINT was received. A second such signal ends the process at once."""
    received: list[int] = []

    def receive(number: int, _: Any) -> None:
        received.append(number)
        signal.signal(number, handlers[number])
        # not print: the signal may interrupt a print, which is not reentrant
        os.write(2, b"Stopping after the current work is saved; interrupt again to quit now.\n")

    handlers: dict[int, Any] = {number: signal.signal(number, receive) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


MALLOC = ((-1, -1), (-4, 0), (-8, 1))
"""Parameters and values of glibc's mallopt(3): no M_TRIM_THRESHOLD, M_MMAP_MAX 0, M_ARENA_MAX 1. The process returns no
memory to the system, and all threads share one heap."""


def keep_memory() -> None:
    """Let malloc keep freed memory for reuse. Does nothing without glibc, or where the environment configures malloc.

    A compiled program allocates its arrays in each call. By default glibc takes blocks of 32 MiB and more from the
    system each time, and on a CPU the page faults cost up to a quarter of a training step (docs/performance.md). The
    setting holds for the whole process, so only the command line calls this.
    """
    configured = any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ)
    if platform.libc_ver()[0] == "glibc" and not configured:
        import ctypes

        for parameter, value in MALLOC:
            ctypes.CDLL(None).mallopt(parameter, value)


def print_table(table: Any) -> None:
    """Print a `rich` table; a file or a pipe gets full width, so that no cell is cut."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 30 + 28 * len(table.columns)
    Console(width=width, markup=False).print(table)  # "[" in a cell is text


def cache_dir() -> pathlib.Path:
    """The user's cache folder for mcis, made: $XDG_CACHE_HOME/mcis or ~/.cache/mcis; else one in `paths.fallback()`.

    Raises:
      OSError: no folder can be written to.
    """
    named, home = os.environ.get("XDG_CACHE_HOME"), paths.home()
    if named:
        folder: pathlib.Path | None = paths.local_path(named, "$XDG_CACHE_HOME") / "mcis"
    else:
        folder = None if home is None or not home.is_dir() else home / ".cache" / "mcis"
    if folder is not None and paths.writable(folder):
        with contextlib.suppress(OSError):  # the permissions do not say all, as in /proc
            folder.mkdir(parents=True, exist_ok=True)
            return folder
    folder = paths.fallback() / "cache"
    os.environ.setdefault("MPLCONFIGDIR", str(folder / "matplotlib"))  # Matplotlib would warn in several lines
    return folder


CACHE_BYTES = 2 << 30
"""Bound of the compilation cache's size: JAX deletes the entries that were not used for longest."""
CPU_FIELDS = ("model name", "flags", "CPU implementer", "CPU part", "Features")
"""Lines of /proc/cpuinfo that say which instructions a CPU has, on x86 and on ARM."""


def compiler_target(cpuinfo: str | os.PathLike = "/proc/cpuinfo") -> str:
    """What native code depends on, as a folder's name: jaxlib's version and a hash of the CPU's features."""
    import hashlib

    features = {platform.machine()}
    with contextlib.suppress(OSError):
        lines = pathlib.Path(cpuinfo).read_text(encoding="utf-8", errors="replace").splitlines()
        features |= {line for line in lines if line.startswith(CPU_FIELDS)}
    digest = hashlib.sha256("\n".join(sorted(features)).encode()).hexdigest()
    return f"jaxlib-{importlib.metadata.version('jaxlib')}-{digest[:12]}"


def enable_compilation_cache() -> None:
    """Keep compiled programs between runs, in a folder of their own for each version of jaxlib and each kind of CPU.

    JAX's key of a program does not name the CPU: where machines share a home, one would load instructions that it does
    not have. JAX_COMPILATION_CACHE_DIR and JAX_COMPILATION_CACHE_MAX_SIZE take precedence.
    """
    import jax

    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    try:
        folder = cache_dir() / compiler_target()
    except OSError as error:
        print(f"mcis: compiled programs are not kept: {error}", file=sys.stderr)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    if not os.environ.get("JAX_COMPILATION_CACHE_MAX_SIZE"):
        jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)
