"""Turn what a store's libraries raise into one sentence of the project's own."""

import functools
import re
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from dmx.errors import RunError
from dmx.tracking.location import mask
from dmx.tracking.store import StoreRefusedError, StoreSilentError


class _HasAddress(Protocol):
    @property
    def uri(self) -> str: ...


class _MayBeReadOnly(_HasAddress, Protocol):
    read_only: bool


_S = TypeVar("_S", bound=_HasAddress)
_W = TypeVar("_W", bound=_MayBeReadOnly)
_P = ParamSpec("_P")
_T = TypeVar("_T")
_REFUSED = {
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "INVALID_STATE",
}
# SQLAlchemy names the kind of an error at its end; these two are a value that a database does not take.
_ABOUT = re.compile(r"https://sqlalche\.me/e/\d+/(\w+)")
_MISTAKES = ("9h9h", "gkpj")


def one_sentence(method: Callable[Concatenate[_S, _P], _T]) -> Callable[Concatenate[_S, _P], _T]:
    """Let a method of a store raise ``RunError`` only; ``StoreRefusedError`` where repeating it is of no use."""

    @functools.wraps(method)
    def call(self: _S, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return method(self, *args, **kwargs)
        except RunError:
            raise
        except Exception as error:
            if entry := _no_entry(error):
                raise RunError(f"The run store {self.uri} {entry}") from error
            kind = StoreRefusedError if _refused(error) else RunError
            line = _telling_line(error)
            if "Max retries exceeded" in line or "timed out" in line:
                raise StoreSilentError(f"The run store {self.uri} does not answer.") from error
            if "database is locked" in line:
                raise kind(
                    f"The run store {self.uri} is locked: another program writes to it and does not stop. End that one."
                ) from error
            raise kind(f"The run store {self.uri} failed in '{method.__name__}': {line.rstrip('.')}.") from error

    return call


def writing(method: Callable[Concatenate[_W, _P], _T]) -> Callable[Concatenate[_W, _P], _T]:
    """Do the same for a method that changes the store, and refuse where nobody could: what is open is a copy."""
    told = one_sentence(method)

    @functools.wraps(method)
    def call(self: _W, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        if self.read_only:
            raise RunError(f"The run store {self.uri} cannot be written: its file or its folder is read-only.")
        return told(self, *args, **kwargs)

    return call


def _telling_line(error: Exception) -> str:
    """Return the line of an error that says what has happened; SQLAlchemy can begin with what it did meanwhile."""
    lines = [line for line in mask(str(error)).splitlines() if not line.startswith("(raised as a result of ")]
    return next(iter(lines), type(error).__name__)


def _no_entry(error: Exception) -> str:
    """Return why the store lets nobody in; empty for any other error. With another password the call can succeed."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    code, text = getattr(error, "error_code", ""), str(error)
    if status == 401 or code == "UNAUTHENTICATED" or "error code 401" in text:
        return (
            "wants a name and a password, and got none or others. Set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD."
        )
    if status == 403 or code == "PERMISSION_DENIED" or "error code 403" in text:
        return "does not allow this. Ask who runs it for the permission, or set another MLFLOW_TRACKING_USERNAME."
    return ""


def _refused(error: Exception) -> bool:
    """Tell whether the store has understood the call: by MLflow's code, or by the status of an upload."""
    if _database_trouble(str(error)):
        return False
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status == 404:
        # A proxy says that too, while the server behind it is away.
        return "error_code" in getattr(response, "text", "")
    return getattr(error, "error_code", "") in _REFUSED or status in (400, 413)


def _database_trouble(text: str) -> bool:
    """Tell whether a server's database has failed, which MLflow calls a bad request unless it could not connect."""
    place = _ABOUT.search(text)
    return place is not None and place[1] not in _MISTAKES
