"""The page of `kbc ui --labels`: transferred points put right by dragging. Runs on this machine, needs no extra."""

from __future__ import annotations

import argparse
import json
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from kbc.cli.options import options_of
from kbc.cli.text import say_problems
from kbc.cli.ui_guard import Guard, without_folders
from kbc.data.annotations import explain
from kbc.errors import InputError, KBCError, must_be
from kbc.images import load_image, require_cv2
from kbc.labelling.editing import Correction, LabelFile, Which
from kbc.labelling.pipeline import Labeller

MAX_BODY = 1_000_000
"""Bytes of one request: a correction of a thousand points is a tenth of that."""
FIRST_PORT, PORTS = 7860, 100
"""Where a free port is looked for."""
_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'"
_STATIC = {
    "/": ("label_ui.html", "text/html; charset=utf-8"),
    "/label_ui.js": ("label_ui.js", "text/javascript; charset=utf-8"),
    "/label_ui.css": ("label_ui.css", "text/css; charset=utf-8"),
}

_M = TypeVar("_M", bound=BaseModel)


def run(args: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C."""
    options = options_of(args)
    made_by = None if args.matcher is None else {"matcher": args.matcher, "options": options}
    labels = LabelFile(Path(args.labels), None if args.root is None else Path(args.root))
    say_problems(labels.problems)
    server = LabelServer(labels, made_by, args.host, args.port)
    print(f"kbc ui: {server.url} ; Ctrl-C ends it", file=sys.stderr)
    if not args.no_browser:
        webbrowser.open(server.url)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
    return 0


class LabelServer(ThreadingHTTPServer):
    """Serves the page, its pictures and its changes.

    Args:
        labels: what is corrected.
        made_by: `matcher` and `options` for "transfer the rest again"; by default what the file says made it.
        host: address to listen on.
        port: the first free one from 7860 by default; 0 takes any.

    Raises:
        InputError: the address or port cannot be had.
    """

    daemon_threads = True

    def __init__(
        self, labels: LabelFile, made_by: dict[str, Any] | None = None, host: str = "127.0.0.1", port: int | None = None
    ) -> None:
        self.labels, self.made_by = labels, made_by
        self.guard = Guard(None, host)
        self.again = Again()
        for number in range(FIRST_PORT, FIRST_PORT + PORTS) if port is None else (port,):
            try:
                super().__init__((host, number), _Handler)
                break
            except (OSError, OverflowError) as error:
                failed = error
        else:
            if isinstance(failed, socket.gaierror):
                raise InputError(must_be("--host", "an address of this machine", f"{host!r} ({failed.strerror})"))
            raise InputError(must_be("--port", f"free on {host}", str(failed), "name another one"))
        self.url = f"http://{host}:{self.server_address[1]}"

    def transfer_again(self) -> None:
        """Begin to ask about the pictures without labelled objects, in a thread of its own.

        Raises:
            KBCError: nothing is labelled yet, the matcher cannot be built, or it is under way already.
        """
        from kbc import load_matcher, wrap

        said = self.labels.made_by()
        if self.made_by is None and (":" in said.matcher or "checkout" in said.options):
            hint = f"if you trust it, begin anew with --matcher {said.matcher} and its --option"
            received = f"{said.matcher!r}, which runs code that the file names"
            raise InputError(must_be("matcher", "named on the command line", received, hint))
        made_by = self.made_by or {"matcher": said.matcher, "options": said.options}
        matcher = wrap(load_matcher(made_by["matcher"], **made_by["options"]), **said.config)
        exemplars = self.labels.labels().exemplars
        labeller = Labeller(exemplars, matcher, said.instances, said.asked, said.min_confidence)
        self.again.start(lambda: self.labels.transfer_again(labeller, self.again.progress, self.made_by))


class Again:
    """One piece of long work in a thread: how far it is, and what went wrong."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self.done, self.total, self.error = 0, 0, ""

    def start(self, work: Callable[[], str]) -> None:
        """Begin, unless it is under way; what the work gives is what went wrong."""
        if self.running:
            raise InputError(must_be("transfer", "asked for once at a time", "a second time while it is under way"))
        self.done, self.total, self.error = 0, 0, ""
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[], str]) -> None:
        try:
            self.error = without_folders(work())
        except KBCError as error:
            self.error = without_folders(str(error))
        except Exception:
            self.error = "it failed in a way that kbc does not know; the terminal says where"
            raise

    def progress(self, done: int, total: int) -> None:
        """Called by the work."""
        self.done, self.total = done, total

    @property
    def running(self) -> bool:
        """Whether it is under way."""
        return self._thread is not None and self._thread.is_alive()

    def state(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"running": self.running, "done": self.done, "total": self.total, "error": self.error}


class _Handler(BaseHTTPRequestHandler):
    """One request. Only the page's own files, the pictures that the labels name by number, and changes are served."""

    server: LabelServer
    timeout = 60
    server_version, sys_version = "kbc", ""

    def log_message(self, *args: Any) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        """The page, its state and its pictures."""
        if self._refused():
            return
        if self.path in _STATIC:
            name, kind = _STATIC[self.path]
            self._send(200, (files("kbc.cli") / name).read_bytes(), kind)
        elif self.path == "/state":
            self._json({"file": self.server.labels.path.name, "objects": self.server.labels.objects()})
        elif self.path == "/progress":
            self._json(self.server.again.state())
        elif self.path.startswith("/image/"):
            self._answered(self._picture)
        else:
            self._error(404, "there is nothing of this name")

    def do_POST(self) -> None:
        """A change."""
        if self._refused():
            return
        length = int(self.headers.get("content-length") or 0)
        if length > MAX_BODY:
            self.close_connection = True
            self._error(413, f"at most {MAX_BODY:,} bytes are taken")
        elif self.headers.get_content_type() != "application/json":
            self._error(415, "JSON is taken")
        else:
            body, labels = self.rfile.read(length), self.server.labels
            changes: dict[str, Callable[[], dict[str, Any] | None]] = {
                "/save": lambda: labels.correct(_checked(Correction, body)),
                "/undo": lambda: labels.undo(_checked(Which, body).id),
                "/remove": lambda: labels.remove(_checked(Which, body).id),
                "/transfer": self.server.transfer_again,
            }
            if self.path in changes:
                self._answered(lambda: self._json(changes[self.path]() or {}))
            else:
                self._error(404, "there is nothing of this name")

    def _picture(self) -> None:
        """As KBC sees it: upright, eight bits; so points lie where they are drawn, whatever the file is."""
        number = self.path.removeprefix("/image/")
        if not number.isdecimal() or len(number) > 15:
            raise InputError(must_be("image", "a number", number))
        image = load_image(self.server.labels.picture(int(number)))
        _, data = require_cv2().imencode(".jpg", image[..., ::-1], [require_cv2().IMWRITE_JPEG_QUALITY, 92])
        self._send(200, data.tobytes(), "image/jpeg")

    def _answered(self, work: Any) -> None:
        try:
            work()
        except KBCError as error:
            self._error(400, without_folders(str(error)))
        except OSError as error:  # the disk is full, say
            self._error(500, error.strerror or type(error).__name__)

    def _refused(self) -> bool:
        """Whether the request is none of this page's; then it is answered."""
        headers = {name.lower(): value for name, value in self.headers.items()}
        refused = self.server.guard.refused(headers)
        if refused is None and headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            refused = 403, "the request comes from another page"
        if refused is not None:
            self.close_connection = True
            self._error(*refused)
        return refused is not None

    def _error(self, status: int, text: str) -> None:
        self._json({"error": text}, status)

    def _json(self, data: object, status: int = 200) -> None:
        self._send(status, json.dumps(data, allow_nan=False).encode(), "application/json")

    def _send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(body))),
            ("Content-Security-Policy", _POLICY),
            ("X-Content-Type-Options", "nosniff"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Cache-Control", "no-store"),
        ):
            self.send_header(name, value)
        self.end_headers()
        try:
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):  # the browser has gone on
            self.close_connection = True


def _checked(model: type[_M], body: bytes) -> _M:
    """A request's body as a model."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise InputError(f"the request: {explain(error)}") from error
