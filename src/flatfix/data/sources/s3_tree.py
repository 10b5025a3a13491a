"""Files of a source that lie in S3."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from flatfix.data import s3
from flatfix.data.sources.tree import is_hidden, is_picture
from flatfix.errors import UserError


class S3Tree:
    """Objects below a prefix, read as files in the folders that the slashes of their keys make.

    The server is the one of the AWS tools. A key that ends in a slash, which some programs write for an empty folder,
    is a folder. Keys are compared byte for byte.
    """

    num_readers = s3.CONNECTIONS  # which mostly wait

    def __init__(self, uri: str, option: str | None = None) -> None:
        self._option = option
        self._uri = uri
        with self._named():
            bucket, prefix = s3.split(uri)
        self._uri = f"{s3.SCHEME}{bucket}/{prefix}".rstrip("/")

    def __str__(self) -> str:
        return self._uri

    def exists(self) -> bool:
        """Say whether there is an object below the prefix."""
        with self._named():
            return any(True for _ in s3.list_uris(self._address("")))

    def folders(self, below: str = "") -> list[str]:
        """Return the names of the folders directly in a folder."""
        names = (name[:-1] for name in self._names(below) if name.endswith("/"))
        return sorted(name for name in names if not is_hidden(name))

    def files(self, below: str = "") -> list[str]:
        """Return the names of all objects directly in a folder."""
        return [name for name in self._names(below) if not name.endswith("/")]

    def pictures(self, below: str = "") -> Iterator[str]:
        """Yield the paths of all pictures below a folder, sorted by their UTF-8 bytes, as the server lists them."""
        start = len(self._address(""))
        with self._named():
            for uri in s3.list_uris(self._address(below)):
                path = uri[start:]
                if is_picture(path) and not is_hidden(path):
                    yield path

    def read(self, path: str) -> bytes:
        """Return the content of an object."""
        with self._named():
            return s3.read(f"{self._uri}/{path}")

    def _names(self, below: str) -> list[str]:
        """Return what lies directly in a folder; the names of folders end in a slash."""
        folder = self._address(below)
        with self._named():
            return [uri[len(folder) :] for uri in s3.list_uris(folder, is_deep=False) if uri != folder]

    def _address(self, folder: str) -> str:
        """Return what the addresses of all objects in a folder begin with."""
        # Objects lie in no folders: without the slash, `line1` would bring in what is below `line10/`.
        return f"{self._uri}/{folder}/" if folder else f"{self._uri}/"

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Let an error say which option it is about."""
        try:
            yield
        except UserError as error:
            raise UserError(f"{self._option}={self._uri}: {error}" if self._option else str(error)) from error
