"""Turn what a store's libraries raise into one sentence of the project's own."""

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from dmx.errors import RunError
from dmx.tracking.location import mask
from dmx.tracking.store import StoreRefusedError


class _HasAddress(Protocol):
    @property
    def uri(self) -> str: ...


_S = TypeVar("_S", bound=_HasAddress)
_P = ParamSpec("_P")
_T = TypeVar("_T")
_REFUSED = {
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "INVALID_STATE",
}


def one_sentence(method: Callable[Concatenate[_S, _P], _T]) -> Callable[Concatenate[_S, _P], _T]:
    """Let a method of a store raise ``RunError`` only; ``StoreRefusedError`` where repeating it is of no use."""

    @functools.wraps(method)
    def call(self: _S, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return method(self, *args, **kwargs)
        except RunError:
            raise
        except Exception as error:
            kind = StoreRefusedError if _refused(error) else RunError
            lines = mask(str(error)).splitlines() or [type(error).__name__]
            if "Max retries exceeded" in lines[0] or "timed out" in lines[0]:
                raise RunError(f"The run store {self.uri} does not answer.") from error
            raise kind(f"The run store {self.uri} failed in '{method.__name__}': {lines[0].rstrip('.')}.") from error

    return call


def _refused(error: Exception) -> bool:
    """Tell whether the store has understood the call: by MLflow's code, or by the status of an upload."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return getattr(error, "error_code", "") in _REFUSED or status in (400, 404, 413)
