"""Files in an object store (S3, Google Cloud Storage, Azure) or in a folder, through `obstore`.

A file is there as a whole or not at all, and `ObjectStore.create` writes it only if no other writer has. Waiting for a
store can be interrupted by a signal. Errors are one line and never hold credentials.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from worldloop.core.errors import WorldloopError

SCHEMES = ("s3", "gs", "az", "abfs", "abfss", "file")
MAX_RETRIES = 5  # about 5 s if nobody answers
PART = 8 * 2**20  # bytes that are sent or read at once
_POLL_S = 0.5  # a signal that another thread has received is answered after that
_NUM_PARTS = 4  # parts of a file that are sent at the same time
_SECRET = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|CREDENTIAL|SAS")  # in names of environment variables
_NO_CREDENTIALS = re.compile(r"169\.254\.|metadata\.google|identity/oauth2")  # where a cloud's machines ask for them
_REMEDIES = (
    (r"^30\d|redirect|AuthorizationHeaderMalformed", "add the bucket's ?region=... to `mirror`"),
    (r"^40[13]", "check the credentials in the environment, and what they may do"),
    (r"NoSuchBucket|ContainerNotFound|bucket does not exist", "make the bucket first, or correct `mirror`"),
)


class StoreError(WorldloopError):
    """The store cannot be reached, or refuses an operation."""

    exit_code = 1


@dataclass(frozen=True)
class Entry:
    """A file in a store: its size in bytes, and when it was written by the store's own clock."""

    size: int
    modified: datetime


class ObjectStore:
    """The files below ``address``/``folder``, e.g. of ``s3://bucket/runs`` and ``first``.

    Paths are relative to that. ``place`` names it in messages. Every method raises `StoreError` if the store cannot be
    used. Nothing is written until it is asked for.
    """

    def __init__(self, address: str, folder: str) -> None:
        parts = urlsplit(address)
        self.place = f"{address.partition('?')[0].rstrip('/')}/{folder}"
        if parts.scheme not in SCHEMES:
            raise StoreError(
                f"the store {self.place} cannot be used: it must be one of {', '.join(f'{s}://' for s in SCHEMES)}"
            )
        try:
            import obstore
        except ImportError as error:
            raise WorldloopError(
                "mirror needs obstore, which is not installed: pip install -e '.[data]' in the clone"
            ) from error
        self._api = obstore
        self._folder = Path(unquote(parts.path)) / folder if parts.scheme == "file" else None
        if self._folder is not None and parts.netloc not in ("", "localhost"):
            raise StoreError(f"the store {self.place} cannot be used: write file:/// and an absolute path")
        self._address, self._name = address, folder

    @cached_property
    def _store(self) -> Any:
        from obstore.store import LocalStore, from_url

        with self._reaching():
            if self._folder is not None:
                return LocalStore(self._folder, mkdir=True)
            parts = urlsplit(self._address)
            options = {key: values[-1] for key, values in parse_qs(parts.query).items()}
            client: Any = {"timeout": timedelta(hours=1), "read_timeout": timedelta(minutes=2)}
            config: Any = {}  # of S3 or Google Cloud Storage, as the address says
            if "region" in options:
                config["region"] = options["region"]
            if endpoint := options.get("endpoint_override"):
                endpoint = endpoint if "://" in endpoint else f"{options.get('scheme', 'https')}://{endpoint}"
                config["endpoint"] = endpoint
                client["allow_http"] = endpoint.startswith("http://")
            if "tls_ca_file_path" in options:
                client["root_certificate"] = Path(options["tls_ca_file_path"]).read_bytes()
            host = parts.netloc
            if parts.username == "anonymous":
                config["skip_signature"], host = True, host.partition("@")[2]
            return from_url(
                f"{parts.scheme}://{host}{parts.path.rstrip('/')}/{quote(self._name)}",
                config=config,
                client_options=client,
                retry_config={"max_retries": MAX_RETRIES},
            )

    def entries(self, prefix: str = "") -> dict[str, Entry]:
        """All files whose path begins with the folder ``prefix``, by path."""
        if self._folder is not None and not self._folder.exists():
            return {}
        found = self._call(lambda: self._store.list(prefix or None).collect())
        return {meta["path"]: Entry(meta["size"], meta["last_modified"]) for meta in found}

    def read(self, path: str) -> bytes:
        """The contents of a small file. Raises ``FileNotFoundError`` if it is not there."""
        return bytes(self._call(lambda: self._store.get(path).bytes(), must_exist=True))

    def read_blocks(self, path: str) -> Iterator[bytes]:
        """The contents of a file in blocks. Raises ``FileNotFoundError`` if it is not there."""
        stream = iter(self._call(lambda: self._store.get(path).stream(min_chunk_size=PART), must_exist=True))
        while (block := self._call(lambda: next(stream, None))) is not None:
            yield bytes(block)

    def create(self, path: str, data: bytes) -> bool:
        """Write a small file unless it is there; returns whether it was written."""
        exists = self._api.exceptions.AlreadyExistsError

        def put() -> bool:
            try:
                self._store.put(path, data, mode="create")
            except exists:
                return False
            return True

        return bool(self._call(put))

    def write(self, path: str, size: int, blocks: Iterable[bytes]) -> None:
        """Write a file of ``size`` bytes, or nothing if ``blocks`` raises an error. It replaces a file at ``path``."""
        if size <= PART:
            data = b"".join(blocks)
            self._call(lambda: self._store.put(path, data))
        else:
            self._call(lambda: self._store.put(path, iter(blocks), chunk_size=PART, max_concurrency=_NUM_PARTS))

    def delete(self, paths: Iterable[str]) -> None:
        """Delete these files; those that are gone already do not matter."""
        if wanted := list(paths):
            with suppress(FileNotFoundError):
                self._call(lambda: self._store.delete(wanted), must_exist=True)

    def _call[T](self, function: Callable[[], T], must_exist: bool = False) -> T:
        with self._reaching(must_exist):
            return _run_interruptibly(function)

    @contextmanager
    def _reaching(self, must_exist: bool = False) -> Iterator[None]:
        """Turn errors into `StoreError`; with ``must_exist`` a missing file stays a ``FileNotFoundError``."""
        try:
            yield
        except (self._api.exceptions.BaseError, OSError, ValueError, TypeError, NotImplementedError) as error:
            if must_exist and isinstance(error, FileNotFoundError):
                raise
            # "from None", since the library's message may hold a signed address
            text = describe(str(error) or type(error).__name__)
            raise StoreError(f"the store {self.place} cannot be used: {text}") from None


def describe(text: str) -> str:
    """One line about a store's error ``text``: what the store said, and what to do; no address and no credentials."""
    if _NO_CREDENTIALS.search(text):
        return "there are no credentials in the environment; docs/cluster.md says which"
    status = re.findall(r"status code: (\d+[^:<\n]*)", text)[:1]
    said = [found[1] for name in ("Code", "Message") if (found := re.search(f"<{name}>([^<\n]+)", text))]
    said = said or re.findall(r'"message": *"([^"\n]+)"', text)[:1]
    inner = re.findall(r'message: "([^"\n]+)"|(dns error)', text)
    if "kind: Timeout" in text:
        cause = "it does not answer in time"
    elif status or said:
        cause = ": ".join(part.strip() for part in (*status, *said))
    else:
        cause = "".join(inner[0]) if inner else text.partition("\n")[0]
    cause = re.sub(r"\w+://\S+", "...", cause)
    for name, value in os.environ.items():
        if _SECRET.search(name.upper()) and len(value) >= 8:
            cause = cause.replace(value, "***")
    return f"{cause}; {next((remedy for known, remedy in _REMEDIES if re.search(known, cause)), 'see `mirror`')}"


def _run_interruptibly[T](function: Callable[[], T]) -> T:
    """``function()``. In the main thread a signal ends the wait for it, which a library would hold up."""
    if threading.current_thread() is not threading.main_thread():
        return function()
    outcome: list[tuple[bool, Any]] = []

    def run() -> None:
        try:
            outcome.append((True, function()))
        except BaseException as error:
            outcome.append((False, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_POLL_S)
    succeeded, value = outcome[0]
    if not succeeded:
        raise value
    return value  # type: ignore[no-any-return]
