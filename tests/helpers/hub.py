"""A server that answers as the Hugging Face Hub does to those who download a data set, and what a program sees of it."""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.helpers.paths import ROOT

COMMIT = "c0ffee" * 6 + "c0ff"
LOOK = """
import json, os, pickle, sys
from pathlib import Path
from igkd.base.errors import UserError
from igkd.images.open import open_images
found = {}
for text in sys.argv[1:]:
    try:
        source = open_images(text)
        again = pickle.loads(pickle.dumps(source))
        assert again == source and str(open_images(str(source))) == str(source)
        record = next(iter(again.read("test", [1])))
        found[text] = [str(source), list(source.classes), len(source.labels("train")), record.label, len(record.image), source.uri]
    except UserError as error:
        found[text] = str(error)
if sent := os.environ.get("SENT"):
    if not Path(sent).exists():
        Path(sent).write_bytes(pickle.dumps(source))
    source = pickle.loads(Path(sent).read_bytes())
    found["sent"] = [str(source), len(source.labels("train")), source.uri]
print(json.dumps(found))
"""


@contextlib.contextmanager
def hub(data_sets: Mapping[str, Path]) -> Iterator[str]:
    """Serve directories as data sets OWNER/NAME with one commit, the branch main; gives the address. One named OWNER/gated is refused."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.respond(with_body=False)

        def do_GET(self) -> None:
            self.respond(with_body=True)

        def respond(self, with_body: bool) -> None:
            parts = self.path.partition("?")[0].strip("/").split("/")
            if parts[:2] == ["api", "datasets"]:
                status, headers, data = self.of_api("/".join(parts[2:4]), parts[4:])
            elif parts[0] == "datasets" and "/".join(parts[1:3]) in data_sets:
                data = (data_sets["/".join(parts[1:3])] / "/".join(parts[5:])).read_bytes()
                status, headers = 200, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
            else:
                status, headers, data = 404, {}, b""
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(data)

        def of_api(self, repository: str, rest: list[str]) -> tuple[int, dict[str, str], bytes]:
            if repository.endswith("/gated"):
                return 403, {"X-Error-Code": "GatedRepo"}, b"{}"
            if repository not in data_sets:
                return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
            if "revision" in rest and rest[-1] not in ("main", COMMIT):
                return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
            root = data_sets[repository]
            files = [path.relative_to(root).as_posix() for path in sorted(root.rglob("*")) if path.is_file()]
            answer: Any = {"id": repository, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}
            if "tree" in rest:
                sizes = {file: (root / file).stat().st_size for file in files}
                answer = [{"type": "file", "oid": COMMIT, "size": size, "path": file} for file, size in sizes.items()]
            return 200, {"Content-Type": "application/json"}, json.dumps(answer).encode()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def looked(cache: Path, texts: list[str], endpoint: str = "http://127.0.0.1:9", **more: str) -> dict[str, Any]:
    """What a new process, with a cache of its own, sees of image sources: figures of each, or its sentence.

    Args:
        more: environment variables. If SENT names a file, "sent" is what it sees of the pickled source in it, or if there is none yet, of
            the last source, which it leaves there.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_HOME": str(cache), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_PROGRESS_BARS": "1", **more}
    done = subprocess.run([sys.executable, "-c", LOOK, *texts], env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
