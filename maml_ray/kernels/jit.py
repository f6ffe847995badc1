"""Compiled loops: what all of them are compiled with, and mathematics that they share.

Numba (Lam et al. 2015, https://doi.org/10.1145/2833157.2833162) turns plain loops over arrays into
machine code. Such a loop does not hold Python's lock, so threads go side by side, and between its
operations nothing is looked up or allocated.

What was compiled is kept, and a machine compiles once. Numba forgets it when the loop's own file
has changed, and does not notice a change in another file, of what the loop calls. So all loops
stand in this package or in modules named ``*_kernel``, and are kept under a name made of what is in
all of these.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numba import config, njit, types
from numba.extending import overload

Loop = TypeVar("Loop", bound=Callable[..., Any])


def cache_directory(package: Path) -> str | None:
    """A folder for the loops of ``package`` as they are: beside them, or in the user's cache.

    None where neither can be written to: each process then compiles for itself.
    """
    sources = [*sorted((package / "kernels").glob("*.py")), *sorted(package.rglob("*_kernel.py"))]
    content = b"".join(source.read_bytes() for source in sources)
    name = f"loops-{hashlib.sha256(content).hexdigest()[:16]}"
    given, home = config.CACHE_DIR, os.environ.get("XDG_CACHE_HOME", "~/.cache")
    chosen = [given] if given else [package / "__pycache__", Path(home).expanduser() / "maml_ray"]
    for folder in map(Path, chosen):
        try:
            (folder / name).mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder / name, os.W_OK):
            return str(folder / name)
    return None


_KEPT = cache_directory(Path(__file__).parents[1])


def jit(loop: Loop) -> Loop:
    """Compile ``loop`` when it is first called with arguments of certain types.

    A product and a sum may become one operation, which rounds once. Sums keep their order, and
    infinities and what is no number stay what they are.
    """
    before, config.CACHE_DIR = config.CACHE_DIR, _KEPT or ""  # read when a function is decorated
    try:
        decorated: Loop = njit(
            nogil=True,
            cache=_KEPT is not None,
            fastmath={"contract"},
            error_model="numpy",
            boundscheck=False,
        )(loop)
    finally:
        config.CACHE_DIR = before
    return decorated


def tanh(value: Any) -> Any:
    """The hyperbolic tangent in compiled loops: of a float32 within 4 units in the last place.

    The C library's takes one number at a time. This one, a quotient of polynomials, is made of what
    a processor does to many numbers at once.
    """
    raise NotImplementedError("for compiled loops; numpy has another")


_SATURATED = np.float32(9.01)
"""Beyond it the nearest float32 is one."""
_P = tuple(
    np.float32(each)
    for each in (
        0.99999999870799527,
        0.13680383634177418,
        3.8689151932018977e-3,
        2.8019329623700528e-5,
        3.0613635974956606e-8,
        -1.2224745817862588e-11,
    )
)
_Q = tuple(
    np.float32(each)
    for each in (
        1.0,
        0.47013715709581927,
        2.724798796340985e-2,
        3.9396674865854243e-4,
        1.2881969068103026e-6,
    )
)
"""``tanh(x) = x P(x^2) / Q(x^2)``, of the smallest relative error (1.3e-9, before rounding) up to
there: least squares, weighted until the largest errors are alike (Lawson's algorithm)."""


@overload(tanh, inline="always")  # type: ignore[untyped-decorator]
def _tanh(value: Any) -> Any:
    def exact(value: Any) -> Any:
        return math.tanh(value)

    one = np.float32(1.0)

    def quotient(value: Any) -> Any:
        x = min(max(value, -_SATURATED), _SATURATED)
        z = x * x
        above = ((((_P[5] * z + _P[4]) * z + _P[3]) * z + _P[2]) * z + _P[1]) * z + _P[0]
        below = (((_Q[4] * z + _Q[3]) * z + _Q[2]) * z + _Q[1]) * z + _Q[0]
        return min(max(x * above / below, -one), one)

    return quotient if value == types.float32 else exact
