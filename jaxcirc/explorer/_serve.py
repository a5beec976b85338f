"""Serves a page to this machine alone, and answers what it asks of the model, if there is one behind it."""

import dataclasses
import errno
import http.server
import json
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit


ADDRESS = "127.0.0.1"  # nobody else's machine sees what is studied here
NAMES = (ADDRESS, "localhost")
MOST = 10_000  # bytes of a question


class Moved(NamedTuple):
    """What moving a node does to one thing: what the edges say, and what the model does."""

    what: str
    predicted: float
    measured: float


@dataclasses.dataclass(frozen=True)
class Live:
    """A model behind the page, in which the pinned node can be moved.

    **Attributes:** - `words`: what is done, and what a strength means. - `strength`: the one that is offered first. - `run`: what moving
    the node of a name by a strength does. It raises `ValueError` for a node that cannot be moved.
    """

    words: str
    strength: float
    run: Callable[[str, float], Sequence[Moved]]


def server_of(page: str, live: Live | None, port: int) -> http.server.ThreadingHTTPServer:
    """Makes a server of the page at `http://127.0.0.1:port/`, any free port for 0; `POST /run` moves a node.

    **Raises:** `ValueError` if the port is in use or may not be used.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"port is a number from 0 to 65535; got {port}.")
    text, one_at_a_time = page.encode("utf-8"), threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self._known():
                found = urlsplit(self.path).path == "/"
                self._answer(200 if found else 404, text if found else b"", "text/html; charset=utf-8")

        def do_POST(self) -> None:
            if not self._known():
                return
            if live is None or urlsplit(self.path).path != "/run":
                self._answer(404, b"", "application/json")
                return
            try:
                node, strength = self._question()
                with one_at_a_time:
                    rows = live.run(node, strength)
                status, said = 200, {"rows": [row._asdict() for row in rows]}
            except ValueError as error:
                status, said = 400, {"error": str(error)}
            self._answer(status, json.dumps(said).encode("utf-8"), "application/json")

        def _known(self) -> bool:
            """Refuses what another site's page asks, under a name of its own for this machine or from its own address."""
            host, origin = self.headers.get("Host") or "", self.headers.get("Origin")
            known = host.rpartition(":")[0] in NAMES and origin in (None, f"http://{host}")
            if not known:
                self._answer(403, b"", "text/plain")
            return known

        def _question(self) -> tuple[str, float]:
            length = self.headers.get("Content-Length") or ""
            if not length.isdecimal() or int(length) > MOST:
                raise ValueError(f"A question is JSON of at most {MOST} bytes.")
            asked = json.loads(self.rfile.read(int(length)))  # its errors are ValueErrors
            node, strength = (
                (asked.get(name) for name in ("node", "strength")) if isinstance(asked, dict) else (None, None)
            )
            if not (isinstance(node, str) and isinstance(strength, int | float) and math.isfinite(strength)):
                raise ValueError('A question is {"node": NAME, "strength": NUMBER}.')
            return node, float(strength)

        def _answer(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    try:
        return http.server.ThreadingHTTPServer((ADDRESS, port), Handler)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        why = "is in use" if error.errno == errno.EADDRINUSE else "may not be used"
        raise ValueError(f"port {port} {why}. Choose another, or leave it out.") from None
