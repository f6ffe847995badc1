"""Decide who may call: whoever has the token, or without one, no page of another web server.

A page that a browser has loaded from elsewhere can send requests to a service on the same machine
or network. It does not know the token. Without a token, the headers that its browser adds give it
away: ``Origin`` names the page's own server, and after DNS rebinding ``Host`` names it.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import ipaddress
import os
import shlex
import socket
import stat
from pathlib import Path
from urllib.parse import urlsplit

from maml_ray.common.errors import UserError
from maml_ray.common.locations import parse_path
from maml_ray.common.safe_files import UnreadableFile, read_text
from maml_ray.serving.http.errors import ApiError, Application, Receive, Scope, Send

TOKEN_VARIABLE = "MAML_RAY_SERVE_TOKEN"
OPEN_PATHS = frozenset({"/healthz", "/metrics", "/docs", "/openapi.json"})
"""Paths that need no token, for probes and readers: they reveal nothing of the policies."""
_MAX_TOKEN_FILE_BYTES = 10_000
_MIN_TOKEN_LENGTH = 16
_OWNER_ONLY, _GROUP_MAY_READ = 0o700, 0o740


def load_token_digest(token_file: str | None) -> bytes | None:
    """Return the SHA-256 of the token in ``token_file`` or the environment; None without either.

    Only the digest, never the token, is sent through the cluster.

    Raises:
        UserError: the file cannot be read, or others can read it too; or the token is too short
            or not ASCII.
    """
    if token_file is not None:
        try:
            path = parse_path(token_file, "token_file")
            token = read_text(path, max_bytes=_MAX_TOKEN_FILE_BYTES).strip()
        except UnreadableFile as error:
            raise UserError(f"cannot read the token file {token_file}: {error}") from None
        _check_private(path)
        source = f"the token file {token_file}"
    elif TOKEN_VARIABLE in os.environ:
        token, source = os.environ[TOKEN_VARIABLE].strip(), TOKEN_VARIABLE
    else:
        return None
    if len(token) < _MIN_TOKEN_LENGTH or not token.isascii():
        raise UserError(
            f"{source} must hold a token of at least {_MIN_TOKEN_LENGTH} ASCII characters: make "
            "one with 'openssl rand -hex 32'"
        )
    return _digest(token.encode())


def _check_private(path: Path) -> None:
    """Check the mode of a token file by the rule of PostgreSQL for private keys.

    A file of root may be readable by its group: so Kubernetes mounts a secret for a container that
    does not run as root.

    Raises:
        UserError: others can read or write the file.
    """
    status = path.stat()
    mode = stat.S_IMODE(status.st_mode)
    if mode & ~(_GROUP_MAY_READ if status.st_uid == 0 else _OWNER_ONLY):
        remedy = f"chmod 600 {shlex.quote(str(path))}"
        if status.st_uid != os.geteuid():
            remedy = f"{remedy}, or defaultMode: 0400 if it is a secret of Kubernetes"
        raise UserError(
            f"the token file {path} must be readable by its owner only, but has mode {mode:04o}: "
            f"{remedy}"
        )


def token_matches(authorization: bytes, token_digest: bytes) -> bool:
    """Return whether an ``Authorization`` header carries the token, in constant time."""
    scheme, _, token = authorization.partition(b" ")
    return hmac.compare_digest(_digest(token.strip()), token_digest) and scheme.lower() == b"bearer"


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


class AccessMiddleware:
    """ASGI middleware that rejects whoever may not call.

    Args:
        app: the ASGI application behind it.
        token_digest: SHA-256 of the token; None to require none.
    """

    def __init__(self, app: Application, *, token_digest: bytes | None) -> None:
        self._app, self._token_digest = app, token_digest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on.

        Raises:
            ApiError: as :func:`check_access`.
        """
        if scope["type"] == "http":
            check_access(scope, self._token_digest)
        await self._app(scope, receive, send)


def check_access(scope: Scope, token_digest: bytes | None) -> None:
    """Check the headers of a request.

    Args:
        scope: the request's ASGI scope.
        token_digest: SHA-256 of the token; None to require none.

    Raises:
        ApiError: the token is missing or wrong (401); or without a token, ``Host`` is a name that
            may not name this machine (421), or ``Origin`` is another server's page (403).
    """
    headers = dict(scope["headers"])
    if token_digest is not None:
        if scope["path"] not in OPEN_PATHS and not token_matches(
            headers.get(b"authorization", b""), token_digest
        ):
            raise ApiError(
                401, "a token is required: send the header 'Authorization: Bearer TOKEN'"
            )
        return
    host, origin = headers.get(b"host"), headers.get(b"origin")
    address = (scope.get("server") or ("127.0.0.1", None))[0]
    # Every browser sends Host. Probes that speak HTTP/1.0 may not.
    if host is not None and not _is_own_host(host.decode("latin-1"), address):
        raise ApiError(
            421,
            f"Host: {host.decode('latin-1'):.80} is not a known name of this machine: call "
            f"the service as {_allowed_hosts(address)}, or start it with a token (--token-file)",
        )
    if origin is not None and not _is_same_server(origin, host):
        raise ApiError(
            403,
            f"Origin: {origin.decode('latin-1'):.80} is another server, whose pages may not use "
            "this service: start it with a token (--token-file) and send that",
        )


@functools.lru_cache(maxsize=1024)
def _is_own_host(host: str, address: str) -> bool:
    """Return whether a ``Host`` header certainly names this machine.

    Any DNS server can give this machine's address to a name, but a name in form of an address is
    used as it stands.

    Args:
        host: the header, with or without a port.
        address: local address of the connection.
    """
    name = _host_name(host)
    if name == "localhost":
        return True
    if is_loopback(address):
        return is_loopback(name)
    return _is_address(name) or name == socket.gethostname().lower()


def _allowed_hosts(address: str) -> str:
    return "localhost" if is_loopback(address) else "its IP address"


def _is_same_server(origin: bytes, host: bytes | None) -> bool:
    try:
        return host is not None and urlsplit(origin.lower()).netloc == host.lower()
    except ValueError:
        return False


def _host_name(host: str) -> str:
    """Return a ``Host`` header without its port and brackets."""
    name = host.lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.rpartition(":")[0] if ":" in name else name


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def is_loopback(text: str) -> bool:
    """Return whether a text is a loopback address; a name such as ``localhost`` is none."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
