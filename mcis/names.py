"""Names that a user wrote and nothing has: which known one was perhaps meant. Standard library only."""

import contextlib
import difflib
import glob
import os
import pathlib
from collections.abc import Iterable


def meant(word: str, known: Iterable[str]) -> str:
    """A question with the known name that is most similar to a word, after a space; "" where none is similar.

    >>> meant("trane", ["train", "tune", "build"]), meant("liver", ["brain", "breast"])
    (" Did you mean 'train'?", '')
    """
    similar = _similar(word, known)
    return "" if similar is None else f" Did you mean {similar!r}?"


def no_such(what: str, word: str, known: Iterable[str]) -> str:
    """The message for a name that nothing has.

    Args:
      what: the kind of thing, in the singular.
      word: what the user wrote.
      known: the names there are.

    >>> no_such("organ", "brian", ["brain", "breast"])
    "There is no organ 'brian'. Did you mean 'brain'? The organs are brain, breast"
    """
    names = list(known)
    return f"There is no {what} {word!r}.{meant(word, names)} The {what}s are {', '.join(names)}"


def no_such_path(path: str | os.PathLike) -> str:
    """The message for a path at which nothing is: where it ends, and what is there that is called alike."""
    text = os.fspath(path)
    if glob.has_magic(text):
        return f"{text}: no file or folder matches; check the part before the first of * ? ["
    missing = pathlib.Path(text)
    if os.path.islink(missing):
        return f"{text}: a link to {os.readlink(missing)}, which is not there; name the file or folder itself"
    while not os.path.lexists(missing.parent):
        missing = missing.parent
    folder = missing.parent
    said = f"{text}: no such file or folder. There is no {missing.name!r} in {folder.absolute()}"
    if not folder.is_dir():
        return f"{said}, which is a file"
    names: list[str] = []
    with contextlib.suppress(OSError):  # a folder that may not be listed
        names = os.listdir(folder)
    if (similar := _similar(missing.name, names)) is not None:
        return f"{said}. Did you mean {str(folder / similar)!r}?"
    return f"{said}; check the spelling, and whether its disk or share is connected"


def _similar(word: str, known: Iterable[str]) -> str | None:
    """The known name that is most similar to a word, whatever their case; None where none is."""
    names = {name.lower(): name for name in known}
    similar = difflib.get_close_matches(word.lower(), names, n=1)
    return names[similar[0]] if similar else None
