"""Names that a user wrote and nothing has: which known one was perhaps meant. Standard library only."""

import difflib
from collections.abc import Iterable


def meant(word: str, known: Iterable[str]) -> str:
    """A question with the known name that is most similar to a word, after a space; "" where none is similar.

    >>> meant("trane", ["train", "tune", "build"]), meant("liver", ["brain", "breast"])
    (" Did you mean 'train'?", '')
    """
    similar = difflib.get_close_matches(word.lower(), list(known), n=1)
    return f" Did you mean {similar[0]!r}?" if similar else ""


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
