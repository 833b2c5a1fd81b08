"""How compiled loops are declared. Import late: this loads numba."""

from collections.abc import Callable
from typing import TypeVar, cast

from numba import njit

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """Compile at the first call, without fastmath and without holding the GIL.

    The machine code is kept on disk beside the source or in the user's cache directory. A
    daemon that may write to neither (installed by root, run without a home directory) compiles
    in memory at each start instead: numba itself would refuse to load.
    """
    try:
        return cast(Function, njit(nogil=True, cache=True)(function))
    except RuntimeError:
        return cast(Function, njit(nogil=True)(function))
