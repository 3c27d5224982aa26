"""Which file names of a folder are taken as photos, and counts of those that are left out.

The set of suffixes is recorded in the run, so that a larger set of a later version adds no images
to an existing run. Files that are left out are counted by suffix. With `--any-suffix` the first
bytes of a file decide in the fetch.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from pipeline.amounts import counted
from pipeline.config import IMAGE_SUFFIXES

# The suffixes of runs that did not record them.
FIRST_SUFFIXES: Final = (
    *("jpg", "jpeg", "png", "webp", "bmp", "gif"),
    *("tif", "tiff", "avif", "heic", "jp2"),
)
# Files and folders that file systems and viewers make beside photos.
COMPANION_NAMES: Final = frozenset(
    {".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini", ".picasa.ini", ".nomedia"}
)
COMPANION_FOLDERS: Final = frozenset(
    {
        *("@eadir", "__macosx", ".appledouble", ".trashes", ".spotlight-v100", ".fseventsd"),
        *("$recycle.bin", "system volume information", "#recycle", "@recycle", "lost+found"),
        *("#snapshot", ".snapshot", ".snapshots", ".zfs"),  # older states of the same folder
        *(".@__thumb", ".thumbnails", ".ipynb_checkpoints"),  # copies
    }
)
COMPANION_PREFIX: Final = "._"
# Folders of a Kubernetes volume, to whose files there are links beside.
MOUNT_FOLDER: Final = re.compile(r"\.\.(data|\d{4}_\d\d_\d\d_)")
# Never photos, even with `--any-suffix`.
OTHER_SUFFIXES: Final = frozenset(
    {
        *("txt", "md", "csv", "tsv", "json", "jsonl", "xml", "yaml", "yml", "toml", "ini", "log"),
        *("html", "htm", "css", "js", "py", "ipynb", "sh", "pdf", "doc", "docx", "xls", "xlsx"),
        *("zip", "tar", "gz", "tgz", "bz2", "xz", "7z", "rar", "parquet", "npy", "npz", "pkl"),
        *("mp4", "mov", "avi", "mkv", "webm", "mp3", "wav", "aae", "xmp", "thm", "db", "sqlite"),
        *("pt", "pth", "safetensors", "onnx", "md5", "sha256", "part", "crdownload", "tmp"),
    }
)
SAID_SUFFIXES: Final = 8
SAID_LETTERS: Final = 20  # of a suffix


@dataclass(frozen=True)
class PhotoNames:
    """Which names are photos. suffixes: in lower case, without the dot.

    archives: whether zips and tars stand for their members.
    """

    suffixes: tuple[str, ...] = IMAGE_SUFFIXES
    any_suffix: bool = False
    leave_companions: bool = True
    archives: bool = True

    def takes(self, path: str) -> bool:
        suffix = suffix_of(path)
        return suffix not in OTHER_SUFFIXES if self.any_suffix else suffix in self.suffixes


@dataclass
class LeftOut:
    """Counts of the names that a listing left out."""

    suffixes: Counter[str] = field(default_factory=Counter)
    companions: int = 0
    run_folder: str = ""  # if it lies in the source
    compressed: Counter[str] = field(default_factory=Counter)  # tars, by suffix
    members: Counter[str] = field(default_factory=Counter)  # of archives, by kind

    def add(self, other: LeftOut) -> None:
        self.suffixes += other.suffixes
        self.companions += other.companions
        self.members += other.members

    def sentence(self, *, any_suffix: bool = False) -> str | None:
        """Such as `left out: 3 other files (2 .txt, 1 without a suffix)`; None if nothing was."""
        parts = []
        if self.run_folder:
            parts.append(f"the run folder {self.run_folder}, which lies in SOURCE")
        if others := self.suffixes.total():
            few = self.suffixes.most_common(SAID_SUFFIXES)
            kinds = [
                f"{n:,} .{_printable(name)}" if name else f"{n:,} without a suffix"
                for name, n in few
            ]
            if len(self.suffixes) > len(few):
                kinds.append(f"{others - sum(n for _, n in few):,} of other suffixes")
            parts.append(f"{counted(others, 'other file')} ({', '.join(kinds)})")
        if self.companions:
            count = counted(self.companions, "companion file")
            parts.append(f"{count} of file systems (._*, .DS_Store, Thumbs.db, @eaDir, __MACOSX)")
        if count := self.compressed.total():
            kinds = ", ".join(f"{n:,} .{name}" for name, n in self.compressed.items())
            parts.append(
                f"{counted(count, 'compressed tar')} ({kinds}), of which no member can be read "
                "alone: unpack them to plain .tar"
            )
        if self.members:
            kinds = ", ".join(f"{n:,} {kind}" for kind, n in self.members.items())
            parts.append(f"{counted(self.members.total(), 'member')} of archives ({kinds})")
        if not parts:
            return None
        hint = ""
        if self.suffixes:
            hint = "; --include '*.xyz' takes a suffix"
            hint += "" if any_suffix else ", --any-suffix whatever may be a picture"
        return f"left out: {' and '.join(parts)}{hint}"


def _printable(suffix: str) -> str:
    """A suffix on one line, cut to `SAID_LETTERS`."""
    letters = (letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in suffix)
    text = "".join(letters)
    return text if len(text) <= SAID_LETTERS else f"{text[:SAID_LETTERS]}..."


def suffix_of(path: str) -> str:
    """The suffix in lower case, without the dot; empty if the name has none."""
    name = path.rstrip("/").rpartition("/")[2]
    stem, dot, suffix = name.rpartition(".")
    return suffix.lower() if dot and stem else ""


def is_companion(path: str) -> bool:
    """Whether the path is that of a file that file systems or viewers make (`COMPANION_...`)."""
    *folders, name = path.rstrip("/").lower().split("/")
    if ".." in path and any(MOUNT_FOLDER.match(folder) for folder in folders):
        return True
    return (
        name.startswith(COMPANION_PREFIX)
        or name in COMPANION_NAMES
        or not COMPANION_FOLDERS.isdisjoint(folders)
    )


def rule_of(
    recorded: Iterable[str] | None, any_suffix: bool, *, archives: bool = True
) -> PhotoNames:
    """The `PhotoNames` of a run. recorded: the suffixes in `run.json`, None if there are none.

    archives: whether the run takes members of archives.
    """
    suffixes = FIRST_SUFFIXES if recorded is None else tuple(recorded)
    # A run with the first set of suffixes, or one that continues it, also keeps companions.
    older = set(suffixes) == set(FIRST_SUFFIXES)
    leave_companions = any_suffix or not older
    return PhotoNames(suffixes, any_suffix, leave_companions, archives)
