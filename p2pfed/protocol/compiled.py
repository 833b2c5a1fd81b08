"""How compiled loops are declared. Import late: this loads numba."""

from collections.abc import Callable
from typing import TypeVar, cast

from numba import njit

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(*, fastmath: bool | set[str] = False) -> Callable[[Function], Function]:
    """Compile at the first call, without holding the GIL.

    The machine code is kept on disk beside the source or in the user's cache directory. A
    daemon that may write to neither (installed by root, run without a home directory) compiles
    in memory at each start instead: numba itself would refuse to load.

    :param fastmath: liberties that LLVM may take with floating point, as numba names them.
    """

    def compile_with_cache(function: Function) -> Function:
        try:
            return cast(Function, njit(nogil=True, cache=True, fastmath=fastmath)(function))
        except RuntimeError:
            return cast(Function, njit(nogil=True, fastmath=fastmath)(function))

    return compile_with_cache
