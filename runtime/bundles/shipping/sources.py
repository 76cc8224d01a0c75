"""Where a bundle comes from: a folder, a server, an OCI image layout (`shipping.oci`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, unquote, urlsplit

from tel_edge.runtime.bundles.manifest import DIGEST
from tel_edge.runtime.errors import InputError, WorkError

# A store's file that holds the digest of its newest version.
LATEST = "latest"
CHUNK = 1 << 20
# Seconds without a byte after which a server counts as gone.
PATIENCE = 60.0
REMOTE = ("http", "https")


class Source(Protocol):
    """Files by their path in a bundle."""

    @property
    def name(self) -> str:
        """Return what messages call it."""
        ...

    def read(self, path: str, at: int = 0) -> tuple[int, Iterator[bytes]] | None:
        """Return a file's bytes and where they begin: `at`, or 0 where that cannot be had.

        None where there is no such file. Raises `InputError` for what is no plain file, `WorkError`
        where it cannot be read, also while it is read.
        """
        ...


@dataclass(frozen=True)
class Folder:
    """A folder, here or on a volume that was carried here."""

    root: Path

    @property
    def name(self) -> str:
        """Return the folder."""
        return str(self.root)

    def at(self, below: str) -> Folder:
        """Return a folder in it."""
        return Folder(self.root / below)

    def read(self, path: str, at: int = 0) -> tuple[int, Iterator[bytes]] | None:
        """Read a file; symbolic links are not followed."""
        place = self.root / path
        if not place.exists() and not place.is_symlink():
            return None
        if place.resolve() != self.root.resolve() / path or not place.is_file():
            raise InputError(f"{place}: no plain file, or behind a symbolic link; copy it anew")
        return at, _of_file(place, at)


def _of_file(place: Path, at: int) -> Iterator[bytes]:
    try:
        with place.open("rb") as stream:
            stream.seek(at)
            while chunk := stream.read(CHUNK):
                yield chunk
    except OSError as error:
        raise WorkError(f"{place}: {error.strerror}; run the same command again") from None


@dataclass(frozen=True)
class Web:
    """A server with plain files below a URL. It is asked alone, wherever it sends one to."""

    root: str

    @property
    def name(self) -> str:
        """Return the URL."""
        return self.root

    def at(self, below: str) -> Web:
        """Return what is below a part of the path."""
        return Web(f"{self.root}/{quote(below)}")

    def read(self, path: str, at: int = 0) -> tuple[int, Iterator[bytes]] | None:
        """Read a file, from `at` if the server can."""
        import ssl
        from http.client import HTTPException
        from urllib.error import HTTPError, URLError
        from urllib.request import Request

        url = f"{self.root}/{quote(path)}"
        # What is compressed on the way would have other bytes.
        ask = {"Accept-Encoding": "identity", **({"Range": f"bytes={at}-"} if at else {})}
        try:
            reply = _opener().open(Request(url, headers=ask), timeout=PATIENCE)
        except InputError:
            raise
        except HTTPError as error:
            if error.code == 404:
                return None
            raise WorkError(f"{url}: the server says {error.code} {error.reason}") from None
        except (URLError, HTTPException, OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            # What is no matter of the moment is the same the next time.
            again = not isinstance(reason, ssl.SSLError | ConnectionRefusedError)
            do = "run the same command again" if again else "see that it is the right address"
            raise WorkError(f"{url}: {reason}; {do}") from None
        went_on = reply.status == 206 and str(reply.headers.get("Content-Range")).startswith(
            f"bytes {at}-"
        )
        return at if went_on else 0, _of_reply(reply, url)


def _of_reply(reply: Any, url: str) -> Iterator[bytes]:
    from http.client import HTTPException

    try:
        with reply:
            while chunk := reply.read(CHUNK):
                yield chunk
    except (HTTPException, OSError) as error:
        raise WorkError(
            f"{url}: the connection ended ({error!r:.80}); run the same command again, which goes "
            "on where it was"
        ) from None


def _opener() -> Any:
    from urllib.request import HTTPRedirectHandler, build_opener

    class Staying(HTTPRedirectHandler):
        def redirect_request(self, req: Any, *of: Any) -> Any:
            here, there = urlsplit(req.full_url), urlsplit(of[-1])
            if here[:2] != there[:2]:
                raise InputError(
                    f"{req.full_url}: sends to another server, {there.scheme}://{there.netloc}, "
                    "which is not asked; name that one if it is the right one"
                )
            return super().redirect_request(req, *of)

    return build_opener(Staying)


def small(source: Source, path: str, most: int) -> bytes | None:
    """Return a whole file of at most `most` bytes, None where there is none."""
    found = source.read(path)
    if found is None:
        return None
    text = b""
    for chunk in found[1]:
        text += chunk
        if len(text) > most:
            raise InputError(f"{source.name}/{path}: larger than {most:,} bytes, so it is no such")
    return text


def opened(given: str) -> tuple[Source, str | None]:
    """Return what a folder or a URL leads to: files of a version, and its digest.

    It may name a store, whose newest version is meant, a version in one, or any bundle, whose
    digest nobody says. Raises `InputError` for a URL of another kind.
    """
    root: Web | Folder
    if "://" in given:
        try:
            scheme, host, path, query, fragment = urlsplit(given)
        except ValueError:
            scheme = host = path = query = fragment = ""
        if scheme not in ("file", *REMOTE) or bool(host) != (scheme in REMOTE) or query or fragment:
            raise InputError(
                f"{given}: a folder is needed, or a URL such as https://HOST/PATH or file:///PATH"
            )
        root = Web(given.rstrip("/")) if host else Folder(Path(unquote(path)))
    else:
        root = Folder(Path(given))
    if isinstance(root, Folder) and not root.root.is_dir():
        raise InputError(f"{given}: no such folder")
    tail = root.name.rstrip("/").rpartition("/")[2]
    if DIGEST.fullmatch(tail):
        return root, tail
    latest = small(root, LATEST, 1000)
    if latest is None:
        return root, None
    name = latest.decode(errors="replace").strip()
    if not DIGEST.fullmatch(name):
        raise InputError(f"{given}/{LATEST}: holds no digest; name a version: {given}/DIGEST")
    return root.at(name), name
