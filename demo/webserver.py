# SPDX-License-Identifier: Apache-2.0
"""The victim: lighttpd from Debian's own package, unpacked and not installed, and its visitors."""

import os
import random
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Self

PACKAGES = ("lighttpd", "libxxhash0", "libpcre2-8-0", "libnettle8", "libcrypt1")
_CONFIG = """\
server.document-root = "{site}"
server.bind = "127.0.0.1"
server.port = {port}
server.pid-file = "{work}/lighttpd.pid"
server.errorlog = "{work}/error.log"
server.breakagelog = "{work}/scripts.log"
server.modules = ("mod_cgi")
index-file.names = ("index.html")
mimetype.assign = (".html" => "text/html", "" => "application/octet-stream")
cgi.assign = (".py" => "/usr/bin/python3")
"""


def fetch(build: Path) -> Path:
    """Download and unpack the packages into *build*, once; returns the root they are unpacked under."""
    root, debs = build / "lighttpd", build / "debs"
    if (root / "usr/sbin/lighttpd").exists():
        return root
    debs.mkdir(parents=True, exist_ok=True)
    unsandboxed = ["-o", "APT::Sandbox::User="] if os.geteuid() == 0 else []
    subprocess.run(
        ["apt-get", *unsandboxed, "-qq", "download", *PACKAGES],
        cwd=debs,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    partial = build / "lighttpd.partial"
    for deb in sorted(debs.glob("*.deb")):
        subprocess.run(["dpkg", "-x", deb, partial], check=True)
    partial.rename(root)
    return root


class WebServer:
    """lighttpd on a free port of 127.0.0.1, as a daemon of its own, for as long as the ``with`` block lasts."""

    def __init__(self, root: Path, site: Path, work: Path) -> None:
        self.root, self.site, self.work = root, site, work
        self.pid = 0
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]

    def __enter__(self) -> Self:
        config = self.work / "lighttpd.conf"
        config.write_text(_CONFIG.format(site=self.site, port=self.port, work=self.work))
        libraries = next((self.root / "usr/lib").glob("*-linux-gnu"))
        environment = {
            "PATH": "/usr/bin:/bin",
            "LD_LIBRARY_PATH": f"{libraries}:{self.root}/lib/{libraries.name}",
        }
        server = self.root / "usr/sbin/lighttpd"
        subprocess.run(
            [server, "-f", config, "-m", self.root / "usr/lib/lighttpd"], env=environment, check=True
        )
        for _ in range(100):
            try:
                self.pid = int((self.work / "lighttpd.pid").read_text())
                self.get("/")
            except (OSError, ValueError):
                time.sleep(0.05)
            else:
                return self
        message = f"lighttpd did not start: see {self.work / 'error.log'}"
        raise SystemExit(message)

    def __exit__(self, *_: object) -> None:
        if self.pid:
            try:
                os.kill(self.pid, signal.SIGTERM)
            except ProcessLookupError:
                return
            for _ in range(100):
                if not Path(f"/proc/{self.pid}").exists():
                    return
                time.sleep(0.05)
            os.kill(self.pid, signal.SIGKILL)

    def get(self, path: str, **query: str) -> str:
        """Fetch a page."""
        url = f"http://127.0.0.1:{self.port}{path}"
        if query:
            url += "?" + urllib.parse.urlencode(query)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=20) as answer:
            text: str = answer.read().decode(errors="replace")
            return text


class Visitors:
    """Ordinary use, from a few threads, until the ``with`` block ends. Bounded: *rate* requests a second, a share of them *orders*."""

    def __init__(
        self, server: WebServer, rate: float = 8.0, threads: int = 2, seed: int = 1, orders: float = 0.0
    ) -> None:
        self.server, self.pause, self.orders = server, threads / rate, orders
        self.requests = 0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._visit, args=(seed + n,)) for n in range(threads)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _visit(self, seed: int) -> None:
        chance = random.Random(seed)
        words = (
            "oak pine birch steel brass copper glass chair table lamp shelf desk bowl plate cup vase".split()
        )
        while not self._stop.wait(chance.expovariate(1 / self.pause)):
            kind = chance.random()
            try:
                if self.orders and chance.random() < self.orders:
                    self.server.get("/shop.py", q=chance.choice(words), order="1")
                elif kind < 0.2:
                    self.server.get("/")
                elif kind < 0.25:
                    self.server.get("/missing.html")
                elif kind < 0.5:
                    self.server.get("/shop.py", q=chance.choice(words), sort="float(a['price'])")
                else:
                    self.server.get("/shop.py", q=chance.choice(words))
            except urllib.error.HTTPError:
                pass
            self.requests += 1
