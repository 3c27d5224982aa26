"""A file system that keeps what it has listed, as the clients of gs:// and az:// do: kept://x."""

from __future__ import annotations

from typing import Any

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class KeptListings(MemoryFileSystem):
    """Files in memory, and listings of them that only `invalidate_cache` makes anew."""

    protocol = "kept"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("kept://", "memory://", 1))

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        path = self._strip_protocol(path)
        if path not in self.dircache:
            self.dircache[path] = super().ls(path, detail=True, **options)
        found = self.dircache[path]
        return found if detail else [each["name"] for each in found]

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        kept = self.dircache.get(path.rpartition("/")[0], ())
        found = next((each for each in kept if each["name"] == path), None)
        return found or super().info(path, **options)

    def invalidate_cache(self, path: str | None = None) -> None:
        self.dircache.clear()


fsspec.register_implementation("kept", KeptListings, clobber=True)
