"""Names of files as tables and other files write them: which file is meant, and whether it is only one.

A name is the path below a folder in Unicode's form NFC, with "/" between folders. Files are told apart by their whole
names, suffix included; a name without suffix, or in another case, means a file where there is only one.
"""

import collections
import dataclasses
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from mcis.imaging import formats

FRAME = re.compile(r"(.+)#(\d{1,6})")
"""A name, and the frame of a file of several, numbered from 0."""


def name_of(path: pathlib.Path, folder: pathlib.Path) -> str:
    """The name of a file below a folder."""
    return unicodedata.normalize("NFC", path.relative_to(folder).as_posix())


def stem_of(name: str) -> str:
    """A name without the suffix of a format: "a.b.png" -> "a.b", "a.nii.gz" -> "a"; "a.b" and "1.2.3" stay.

    >>> stem_of("x/a.b.png"), stem_of("a.NII.gz"), stem_of("1.2.840")
    ('x/a.b', 'a', '1.2.840')
    """
    suffix = max((s for s in formats.SUFFIXES if name.lower().endswith(s)), key=len, default="")
    return name[: -len(suffix)] if suffix and not name[: -len(suffix)].endswith("/") else name


@dataclasses.dataclass(frozen=True)
class Names:
    """The files of a folder by name.

    Attributes:
      paths: name -> the files of that name: several where names differ only in how accents are encoded.
      stems: name without suffix -> names.
      folded: name or name without suffix, in one case -> names.
    """

    paths: Mapping[str, Sequence[pathlib.Path]]
    stems: Mapping[str, Sequence[str]]
    folded: Mapping[str, Sequence[str]]

    @staticmethod
    def of(paths: Iterable[pathlib.Path], folder: pathlib.Path) -> "Names":
        """The names of some files below a folder."""
        named: dict[str, list[pathlib.Path]] = collections.defaultdict(list)
        for path in paths:
            named[name_of(path, folder)].append(path)
        stems, folded = (collections.defaultdict[str, list[str]](list) for _ in range(2))
        for name in named:
            stems[stem_of(name)].append(name)
            for key in dict.fromkeys((name.casefold(), stem_of(name).casefold())):
                folded[key].append(name)
        return Names(dict(named), dict(stems), dict(folded))

    def id_of(self, name: str) -> str:
        """The name without suffix, where that is one file's alone; else the name."""
        return stem_of(name) if len(self.stems[stem_of(name)]) == 1 else name

    def find(self, written: str) -> tuple[Sequence[str], bool]:
        """The names that somebody may mean who wrote this; and whether another suffix or case was written."""
        tidy = written.replace("\\", "/").removeprefix("./")
        for one in dict.fromkeys((written, tidy, tidy.removeprefix("images/"))):
            if one in self.paths:
                return [one], False
            if one in self.stems:
                return self.stems[one], False
        for one in dict.fromkeys((tidy, tidy.removeprefix("images/"))):
            if found := self.stems.get(stem_of(one)):
                return found, True
            for key in (one.casefold(), stem_of(one).casefold()):
                if found := self.folded.get(key):
                    return found, True
        return [], False
