"""Who may ask the page of `kbc ui`, and how much: Host, Origin and the size of what is sent are checked."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

MAX_UPLOAD = 30_000_000
"""Bytes of one request, and of one file. Our choice: a photograph of 50 megapixels takes about 20."""

_FOLDERS = re.compile(r"(?:[A-Za-z]:)?(?:[\\/][^\s\\/'\"]+)+[\\/](?=[^\s\\/'\"])")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


class Guard:
    """ASGI middleware: a request with a foreign Host, from another page, or too large gets a line instead of the page.

    A name that an attacker's server resolves to this machine (DNS rebinding) arrives as a foreign Host; a form on
    another site, or on another port, as a foreign Origin.

    Args:
        app: what is guarded.
        host: the address that the page listens on.
    """

    def __init__(self, app: Any, host: str = "127.0.0.1") -> None:
        self.app = app
        self.names = {"localhost", host.lower(), socket.gethostname().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refused = self.refused(headers)
        if refused is None:
            await self.app(scope, _counted(receive), send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        status, text = refused
        plain = [(b"content-type", b"text/plain; charset=utf-8")]
        await send({"type": "http.response.start", "status": status, "headers": plain})
        await send({"type": "http.response.body", "body": f"kbc ui: {text}\n".encode()})

    def refused(self, headers: dict[str, str]) -> tuple[int, str] | None:
        """Status and reason, or None for a request that is served."""
        host, origin, length = headers.get("host", ""), headers.get("origin"), headers.get("content-length", "0")
        if not self._own(host):
            return 403, "the request names another host than this machine"
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return 403, "the request comes from another page"
        if not length.isdecimal() or len(length) > 18 or int(length) > MAX_UPLOAD:
            return 413, f"at most {MAX_UPLOAD:,} bytes are taken"
        return None

    def _own(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        try:
            ipaddress.ip_address(name)  # no name was resolved to get here
        except ValueError:
            return name in self.names
        return True


def _counted(receive: Receive) -> Receive:
    """The same body, which ends as if the sender had gone away where it is longer than it may be."""
    taken = 0

    async def counted() -> Any:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        return message if taken <= MAX_UPLOAD else {"type": "http.disconnect"}

    return counted


def guarded(host: str) -> list[Any]:
    """The middleware as FastAPI takes it."""
    from starlette.middleware import Middleware

    return [Middleware(Guard, host=host)]


def without_folders(text: str) -> str:
    """A message that names files without the folders that they lie in: a page tells nobody how a disk is laid out."""
    return _FOLDERS.sub("", text)
