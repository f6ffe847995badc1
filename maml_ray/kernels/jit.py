"""Compile kernels with Numba, cache the machine code, and share math functions among them.

Numba (Lam et al. 2015, https://doi.org/10.1145/2833157.2833162) compiles loops over arrays to
machine code. A kernel releases Python's global lock, so that threads run in parallel, and neither
looks up names nor allocates between its operations.

Machine code is cached, so each machine compiles once. Numba notices a change in a kernel's own
file, but not in another file whose functions the kernel calls. All kernels therefore live in this
package or in modules named ``*_kernel``, and the cache directory's name is a hash of all of these.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import llvmlite.binding
import numba
import numpy as np
from numba import config, njit, types
from numba.extending import overload

Kernel = TypeVar("Kernel", bound=Callable[..., Any])


def cache_directory(package: Path) -> str | None:
    """Create and return the directory for the machine code of ``package`` in its present state.

    It lies in ``NUMBA_CACHE_DIR`` if that is set, else in the package's ``__pycache__`` or, with a
    copy of what is there, in the user's cache. None if neither is writable: each process then
    compiles for itself.
    """
    sources = [*sorted((package / "kernels").glob("*.py")), *sorted(package.rglob("*_kernel.py"))]
    content = b"".join(source.read_bytes() for source in sources)
    name = f"kernels-{hashlib.sha256(content).hexdigest()[:16]}"
    user_cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "maml_ray"
    parents = (
        [Path(config.CACHE_DIR)] if config.CACHE_DIR else [package / "__pycache__", user_cache]
    )
    for parent in parents:
        if parent == user_cache:
            _copy_compiled(package / "__pycache__" / name, user_cache / name)
        try:
            (parent / name).mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(parent / name, os.W_OK):
            return str(parent / name)
    return None


def _copy_compiled(source: Path, target: Path) -> None:
    """Copy machine code of a read-only image, unless the target exists.

    By a rename: of processes that start at the same time, none finds half a copy.
    """
    try:
        if target.exists() or not source.is_dir():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as staging:
            shutil.copytree(source, Path(staging) / target.name).rename(target)
    except OSError:
        return  # nothing is writable, or another process was first


_CACHE_DIR = cache_directory(Path(__file__).parents[1])


def can_cache_code() -> bool:
    """Return whether machine code can be stored on this machine."""
    return _CACHE_DIR is not None


def has_cached_code() -> bool:
    """Return whether the cache of this machine contains machine code of the present kernels."""
    return _CACHE_DIR is not None and any(Path(_CACHE_DIR).rglob("*.nbc"))


def is_precompiled() -> bool:
    """Return whether the cache contains all kernels, for this processor and versions."""
    marker = _precompiled_marker()
    return marker is not None and marker.exists()


def mark_precompiled() -> None:
    """Record that the cache contains all kernels."""
    marker = _precompiled_marker()
    if marker is not None:
        marker.touch()


def _precompiled_marker() -> Path | None:
    """Return the file whose existence says so; Numba compiles again for whatever is in its name."""
    if _CACHE_DIR is None:
        return None
    target = (
        sys.version_info[:2],
        numba.__version__,
        llvmlite.binding.get_host_cpu_name(),
        llvmlite.binding.get_host_cpu_features().flatten(),
    )
    digest = hashlib.sha256(repr(target).encode()).hexdigest()[:16]
    return Path(_CACHE_DIR) / f"precompiled-{digest}"


def jit(kernel: Kernel) -> Kernel:
    """Compile ``kernel`` at its first call with arguments of given types; use as a decorator.

    A product and a sum may be fused into one operation, which rounds once. Sums keep their order,
    and infinities and NaN propagate.
    """
    original, config.CACHE_DIR = config.CACHE_DIR, _CACHE_DIR or ""  # Numba reads it in njit
    try:
        compiled: Kernel = njit(
            nogil=True,
            cache=_CACHE_DIR is not None,
            fastmath={"contract"},
            error_model="numpy",
            boundscheck=False,
        )(kernel)
    finally:
        config.CACHE_DIR = original
    return compiled


def tanh(value: Any) -> Any:
    """Compute the hyperbolic tangent in kernels: for float32 within 4 units in the last place.

    A quotient of polynomials vectorizes, unlike the C library's function, which float64 uses.
    """
    raise NotImplementedError("tanh is for compiled kernels only; call numpy.tanh instead")


_SATURATED = np.float32(9.01)
"""From here on tanh rounds to 1 in float32."""
_P = tuple(
    np.float32(coefficient)
    for coefficient in (
        0.99999999870799527,
        0.13680383634177418,
        3.8689151932018977e-3,
        2.8019329623700528e-5,
        3.0613635974956606e-8,
        -1.2224745817862588e-11,
    )
)
_Q = tuple(
    np.float32(coefficient)
    for coefficient in (
        1.0,
        0.47013715709581927,
        2.724798796340985e-2,
        3.9396674865854243e-4,
        1.2881969068103026e-6,
    )
)
"""Coefficients of ``tanh(x) = x P(x^2) / Q(x^2)`` for ``|x| <= _SATURATED``: a minimax fit by
Lawson's algorithm, relative error 1.3e-9 before rounding."""


@overload(tanh, inline="always")  # type: ignore[untyped-decorator]
def _tanh(value: Any) -> Any:
    def exact(value: Any) -> Any:
        return math.tanh(value)

    one = np.float32(1.0)

    def quotient(value: Any) -> Any:
        x = min(max(value, -_SATURATED), _SATURATED)
        z = x * x
        numerator = ((((_P[5] * z + _P[4]) * z + _P[3]) * z + _P[2]) * z + _P[1]) * z + _P[0]
        denominator = (((_Q[4] * z + _Q[3]) * z + _Q[2]) * z + _Q[1]) * z + _Q[0]
        return min(max(x * numerator / denominator, -one), one)

    return quotient if value == types.float32 else exact
