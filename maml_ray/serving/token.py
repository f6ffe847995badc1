"""The token that callers present: read once, kept as a digest, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path

from maml_ray.common.errors import UserError
from maml_ray.common.safe_files import Unreadable, read_text

VARIABLE = "MAML_RAY_SERVE_TOKEN"
_MOST_BYTES = 10_000
_SHORTEST = 16


def token_digest(token_file: str | None) -> bytes | None:
    """SHA-256 of the token in ``token_file`` or the environment; None where there is neither.

    The digest and not the token goes through the cluster.

    Raises:
        UserError: the file cannot be read, or the token is too short to be one.
    """
    if token_file is not None:
        try:
            token = read_text(Path(token_file), most=_MOST_BYTES).strip()
        except Unreadable as error:
            raise UserError(f"cannot read the token file {token_file}: {error}") from None
        source = f"the token file {token_file}"
    elif VARIABLE in os.environ:
        token, source = os.environ[VARIABLE].strip(), VARIABLE
    else:
        return None
    if len(token) < _SHORTEST or not token.isascii():
        raise UserError(
            f"{source} holds no token of {_SHORTEST} ASCII characters or more: make one with "
            "'openssl rand -hex 32'"
        )
    return _digest(token.encode())


def is_right(authorization: bytes, digest: bytes) -> bool:
    """Whether an ``Authorization`` header carries the token."""
    scheme, _, token = authorization.partition(b" ")
    return hmac.compare_digest(_digest(token.strip()), digest) and scheme.lower() == b"bearer"


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
