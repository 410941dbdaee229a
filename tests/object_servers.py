"""An S3-compatible server on this machine's loopback, and a proxy before it that can cut the line."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from http.client import HTTPConnection
from typing import Any

SECRET = "very-secret-access-key"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AKIDTEST",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "NO_PROXY": "127.0.0.1",
    "no_proxy": "127.0.0.1",
}


class S3Server:
    """A running server. It takes any credentials until `require_known_keys`."""

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer

        _make_puts_atomic()
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        self.port = int(self._server.get_host_and_port()[1])

    def ask(self, method: str, path: str, body: str = "") -> int:
        connection = HTTPConnection("127.0.0.1", self.port)
        connection.request(method, path, body)
        status = connection.getresponse().status
        connection.close()
        return status

    def empty(self) -> None:
        """Forget all buckets and keys."""
        assert self.ask("POST", "/moto-api/reset") == 200
        assert self.ask("POST", "/moto-api/reset-auth", "inf") == 200

    def require_known_keys(self) -> None:
        assert self.ask("POST", "/moto-api/reset-auth", "0") == 200

    def make_bucket(self, name: str) -> None:
        assert self.ask("PUT", f"/{name}") == 200

    def age(self, bucket: str, by: timedelta) -> None:
        """Make all objects of ``bucket`` older by the server's own clock."""
        from moto.s3.models import s3_backends

        (account,) = s3_backends.values()
        for key in account["aws"].buckets[bucket].keys.values():
            key.last_modified -= by

    def stop(self) -> None:
        self._server.stop()


@cache
def _make_puts_atomic() -> None:
    """As in S3. moto asks whether an object is there and stores it later: on a busy machine two writers found none."""
    from moto.s3.responses import S3Response

    lock, put = threading.Lock(), S3Response.put_object

    def put_alone(self: S3Response) -> Any:
        with lock:
            return put(self)

    S3Response.put_object = put_alone


class CuttingProxy:
    """Forwards connections to ``port`` of this machine; after ``budget`` bytes of requests it cuts all of them."""

    def __init__(self, port: int) -> None:
        self.budget: float = float("inf")
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                threading.Thread(target=self._forward, args=(client, server, True), daemon=True).start()
                threading.Thread(target=self._forward, args=(server, client, False), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket, counts: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(2**16):
                if counts:
                    self.budget -= len(data)
                if self.budget < 0:
                    break
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()


def name_bucket(bucket: str, port: int) -> str:
    """The address of a run's mirror in ``bucket``."""
    return f"s3://{bucket}/runs?region=us-east-1&endpoint_override=127.0.0.1:{port}&scheme=http"


@contextmanager
def cutting(port: int) -> Iterator[CuttingProxy]:
    proxy = CuttingProxy(port)
    try:
        yield proxy
    finally:
        proxy.close()
