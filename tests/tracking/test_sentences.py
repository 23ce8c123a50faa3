"""Which failures of a store are worth another attempt: only what repeating cannot change is left out of a run."""

from types import SimpleNamespace

import pytest
import sqlalchemy.exc as sql
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos.databricks_pb2 import (
    BAD_REQUEST,
    ENDPOINT_NOT_FOUND,
    INVALID_PARAMETER_VALUE,
    TEMPORARILY_UNAVAILABLE,
)
from requests import HTTPError, Response

from dmx.errors import RunError
from dmx.tracking.sentences import one_sentence
from dmx.tracking.store import StoreRefusedError


def from_database(kind: type[sql.DBAPIError]) -> MlflowException:
    """Make what MLflow makes of an error of its database, except where the database is not reached at all."""
    return MlflowException(message=kind("insert", {}, Exception("trouble")), error_code=BAD_REQUEST)


def from_upload(status: int, text: str = "<html>") -> HTTPError:
    response = Response()
    response.status_code = status
    response._content = text.encode()
    return HTTPError(f"{status}", response=response)


REFUSED = {
    "a name that it does not allow": MlflowException("Invalid", error_code=INVALID_PARAMETER_VALUE),
    "a value that the database does not take": from_database(sql.DataError),
    "a row that contradicts another": from_database(sql.IntegrityError),
    "a run that is gone": RestException({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no run"}),
    "an artifact of a run that is gone": from_upload(404, '{"error_code": "RESOURCE_DOES_NOT_EXIST"}'),
    "a file that is too large": from_upload(413),
}
KEPT = {
    "a connection that was closed": from_database(sql.InterfaceError),
    "a database that may not be written": from_database(sql.InternalError),
    "a database without its tables": from_database(sql.ProgrammingError),
    "no free connection": MlflowException(message=sql.TimeoutError("QueuePool", code="3o7r"), error_code=BAD_REQUEST),
    "the same through a server": RestException(
        {"error_code": "BAD_REQUEST", "message": f"{sql.InterfaceError('insert', {}, Exception('closed'))}"}
    ),
    "a proxy without its server": MlflowException("404 page not found", error_code=ENDPOINT_NOT_FOUND),
    "a proxy without its server, for a file": from_upload(404),
    "a proxy that gave up": from_upload(502),
    "storage that failed": from_upload(500),
    "another password": from_upload(401),
}


class Store(SimpleNamespace):
    uri = "http://host"

    @one_sentence
    def call(self, error: Exception) -> None:
        raise error


@pytest.mark.parametrize("name", REFUSED)
def test_what_repeating_cannot_change_is_refused(name: str) -> None:
    with pytest.raises(StoreRefusedError, match="http://host"):
        Store().call(REFUSED[name])


@pytest.mark.parametrize("name", KEPT)
def test_what_can_pass_is_kept(name: str) -> None:
    with pytest.raises(RunError) as error:
        Store().call(KEPT[name])
    assert not isinstance(error.value, StoreRefusedError)
    assert "\n" not in str(error.value)


def test_a_lock_is_named_although_the_library_begins_with_something_else() -> None:
    said = "(raised as a result of Query-invoked autoflush; …)\n(sqlite3.OperationalError) database is locked\n[SQL: …]"
    with pytest.raises(RunError, match="http://host is locked: another program"):
        Store().call(MlflowException(said, error_code=TEMPORARILY_UNAVAILABLE))
