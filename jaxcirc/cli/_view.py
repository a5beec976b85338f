"""`jaxcirc view`: a saved circuit or attribution graph as a page to explore."""

import argparse
import tempfile
import webbrowser
from pathlib import Path
from typing import Any

from ..attribution_graphs import AttributionGraph
from ..circuits import Circuit
from ..interop._text_tokenizer import load_text_tokenizer
from ._common import Subparsers
from ._options import count, new_file


ADDRESS = "127.0.0.1"  # nobody else's machine sees what is studied here


def add(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "view",
        help="explore a saved circuit or attribution graph",
        description="Opens what `discover`, `demo` or `graph` saved as a page in the browser, served to this machine alone until Ctrl-C; "
        "or writes the page to a file, which opens without this library and without a network.",
        epilog="example: jaxcirc view jaxcirc-demo --out page.html",
    )
    parser.add_argument(
        "path", metavar="PATH", type=Path, help="a circuit's folder, or a graph's .safetensors or .json"
    )
    parser.add_argument("--out", type=new_file("--out"), metavar="FILE", help="write the page there, and serve nothing")
    parser.add_argument(
        "--tokenizer", metavar="NAME", help="whose words a graph's token ids are, where its file lacks them"
    )
    parser.add_argument(
        "--port",
        type=count("--port", "the port to serve at", least=0),
        default=0,
        metavar="N",
        help="(any that is free)",
    )
    parser.add_argument("--no-browser", action="store_true", help="print the address, and open no browser")
    parser.set_defaults(command=view)


def view(arguments: argparse.Namespace) -> int:
    saved = load(arguments.path)
    options: dict[str, Any] = {}
    if arguments.tokenizer is not None:
        if isinstance(saved, Circuit):
            raise ValueError("--tokenizer is for attribution graphs; a circuit's file has its tokens. Leave it out.")
        options = {"tokens": load_text_tokenizer(arguments.tokenizer)}
    if arguments.out is not None:
        saved.to_html(arguments.out, **options)
        print(f"saved to {arguments.out}: open it in a browser.")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        saved.to_html(Path(folder) / "page.html", **options)
        page = (Path(folder) / "page.html").read_bytes()
    with _server(page, arguments.port) as server:
        url = f"http://{ADDRESS}:{server.server_address[1]}/"
        print(f"{arguments.path} at {url} until Ctrl-C.", flush=True)
        if not arguments.no_browser:
            webbrowser.open_new_tab(url)
        server.serve_forever()
    return 0


def load(path: Path) -> Circuit | AttributionGraph:
    """Loads what is saved at a path. **Raises:** `ValueError` if it is neither a circuit nor an attribution graph."""
    if path.is_dir():
        return Circuit.load(path)
    if not path.exists():
        raise ValueError(
            f"{path}: there is no such file or folder. Expected what `jaxcirc discover` or `jaxcirc graph` saved."
        )
    if path.suffix in (".safetensors", ".json"):
        # A circuit's own settings lie in its folder as JSON, too.
        if path.name == "circuit.json":
            return Circuit.load(path.parent)
        return AttributionGraph.load(path) if path.suffix == ".safetensors" else AttributionGraph.from_json(path)
    raise ValueError(
        f"{path} is neither a circuit's folder nor a graph's .safetensors or .json. Expected one of these."
    )


def _server(page: bytes, port: int) -> http.server.ThreadingHTTPServer:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # Another site's page cannot read this one by a name of its own for this machine.
            known = (self.headers.get("Host") or "").rpartition(":")[0] in (ADDRESS, "localhost")
            if not known or self.path.partition("?")[0] != "/":
                self.send_error(404 if known else 403)
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    if port > 65535:
        raise ValueError(f"--port is a number from 0 to 65535; got {port}.")
    try:
        return http.server.ThreadingHTTPServer((ADDRESS, port), Handler)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        why = "is in use" if error.errno == errno.EADDRINUSE else "may not be used"
        raise ValueError(f"--port {port} {why}. Choose another, or leave it out.") from None
