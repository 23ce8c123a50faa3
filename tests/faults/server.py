"""A team server as `docs/security.md` describes it, on loopback: PostgreSQL, an S3 bucket, and `mlflow server`."""

import hashlib
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

BUCKET = "runs"
_HOST = "127.0.0.1"
_STARTS_SECONDS = 120.0
_KEYS = {"AWS_ACCESS_KEY_ID": "anna", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


def missing() -> str:
    """Return why there can be no server here; empty: there can."""
    for name in ("psycopg2", "boto3", "moto", "flask"):
        if find_spec(name) is None:
            return f"{name} is not installed (pip install 'dmx-transfer[server-tests]')"
    if postgres_program("initdb") is None:
        return "PostgreSQL is not installed (apt-get install postgresql)"
    if os.geteuid() == 0 and shutil.which("runuser") is None:
        return "PostgreSQL refuses to run as root, and there is no runuser"
    return ""


def postgres_program(name: str) -> str | None:
    """Return where a program of PostgreSQL is; Debian keeps them outside of the search path."""
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(places[-1]) if places else shutil.which(name)


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], Any], seconds: float, what: str) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"after {seconds} s still not: {what}"
        time.sleep(0.05)


class Group:
    """A program in a process group of its own, which ends with all that it started."""

    def __init__(self, command: Sequence[str], log: Path, **environment: str) -> None:
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                command, env={**os.environ, **environment}, stdout=file, stderr=file, start_new_session=True
            )

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self._process.wait(30)

    def wait(self) -> None:
        self._process.wait(60)

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None


class Postgres:
    """A database server with a data folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._log = folder / "postgres.log"
        self._disk = folder / "disk"
        self._disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=160m", "tmpfs", str(self._disk)]
        # Only a disk of its own can be filled.
        self.has_disk = subprocess.run(mount, capture_output=True, check=False).returncode == 0
        self._data = self._disk / "data"
        self._data.mkdir(mode=0o700)
        self._user: list[str] = []
        if os.geteuid() == 0:
            self._user = ["runuser", "-u", "postgres", "--"]
            shutil.chown(self._data, "postgres")
        made = ["-D", str(self._data), "-U", "mlflow", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        subprocess.run([*self._user, str(postgres_program("initdb")), *made], check=True, capture_output=True)
        self.start()
        with closing(self._connect("postgres")) as connection:
            connection.autocommit = True
            connection.cursor().execute("create database mlflow")

    @property
    def uri(self) -> str:
        return f"postgresql+psycopg2://mlflow@{_HOST}:{self.port}/mlflow"

    def start(self) -> None:
        chosen = (f"listen_addresses={_HOST}", "unix_socket_directories=", "shared_buffers=16MB", "fsync=off")
        words = [part for value in chosen for part in ("-c", value)]
        program = str(postgres_program("postgres"))
        command = [*self._user, program, "-D", str(self._data), "-p", str(self.port), *words]
        self._group = Group(command, self._log)
        until(self._answers, 60, "PostgreSQL answers")

    def stop(self) -> None:
        """Stop it at once, as after a power cut; what was committed stays."""
        number = (self._data / "postmaster.pid").read_text().split()[0]
        os.kill(int(number), signal.SIGQUIT)
        self._group.wait()

    def fill(self) -> None:
        """Leave no room on its disk."""
        with (self._disk / "ballast").open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(65536))

    def empty(self) -> None:
        (self._disk / "ballast").unlink(missing_ok=True)

    def close(self) -> None:
        self.stop()
        if self.has_disk:
            subprocess.run(["umount", str(self._disk)], check=True)

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with closing(self._connect("mlflow")) as connection:
            cursor = connection.cursor()
            cursor.execute(query, values)
            return list(cursor.fetchall())

    def _connect(self, database: str) -> Any:
        import psycopg2

        return psycopg2.connect(host=_HOST, port=self.port, user="mlflow", dbname=database)

    def _answers(self) -> bool:
        import psycopg2

        try:
            self._connect("postgres").close()
        except psycopg2.OperationalError:
            assert not self._group.ended, self._log.read_text()[-2000:]
            return False
        return True


class Bucket:
    """An S3 server with one bucket, which keeps what it has while it is stopped."""

    def __init__(self) -> None:
        import boto3
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = ThreadedMotoServer(_HOST, 0, verbose=False)
        self._server.start()
        _, port = self._server.get_host_and_port()
        # Only this way leads to the server, so that closing it is the end of the S3 service.
        self.gate = Gate(port)
        self.environment = {**_KEYS, "MLFLOW_S3_ENDPOINT_URL": f"http://{_HOST}:{self.gate.port}"}
        self._client = boto3.client(
            "s3",
            endpoint_url=f"http://{_HOST}:{port}",
            region_name=_KEYS["AWS_DEFAULT_REGION"],
            aws_access_key_id=_KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=_KEYS["AWS_SECRET_ACCESS_KEY"],
        )
        self._client.create_bucket(Bucket=BUCKET)

    def hashes(self, prefix: str) -> dict[str, str]:
        """Return the SHA-256 of every object below a place."""
        found = {}
        for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/"):
            for item in page.get("Contents", []):
                content = self._client.get_object(Bucket=BUCKET, Key=item["Key"])["Body"].read()
                found[item["Key"].removeprefix(f"{prefix}/")] = hashlib.sha256(content).hexdigest()
        return found

    def close(self) -> None:
        self.gate.close()
        self._server.stop()


class Gate:
    """A port that leads to another one, as long as it is open.

    Attributes:
        mode: ``open``; ``hang``: connections are taken and nothing comes back; ``closed``: refused; ``swallow``: every
            third answer is lost after the request has been carried out.
        fate: (part of a request, what becomes of the next one with it): ``lost``: carried out, and not answered;
            ``late``: carried out when :attr:`late` is set, long after whoever asked has gone.
        met: How many such requests came since then, that one included.
        late: Lets requests through that were held back.
    """

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self.mode = "open"
        self.swallowed = 0
        self.fate: tuple[bytes, str] = (b"", "")
        self.met = 0
        self.late = threading.Event()
        self._target = target
        self._answers = 0
        self._connections: set[socket.socket] = set()
        self._listener = self._listen()

    def set(self, mode: str) -> None:
        if mode == "closed":
            self.close()
        elif self.mode == "closed":
            self._listener = self._listen()
        self.mode = mode

    def close(self) -> None:
        self.mode = "closed"
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in list(self._connections):
            self._cut(connection)

    def _listen(self) -> socket.socket:
        listener = socket.create_server((_HOST, self.port))
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return listener

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                caller, _ = listener.accept()
                threading.Thread(target=self._serve, args=(caller,), daemon=True).start()

    def _serve(self, caller: socket.socket) -> None:
        server = socket.socket()
        pair = (caller, server)
        self._connections.update(pair)
        try:
            self._wait()
            server.connect((_HOST, self._target))
            threading.Thread(target=self._pump, args=(caller, server, False), daemon=True).start()
            self._pump(server, caller, True)
        except OSError:
            pass
        finally:
            for end in pair:
                self._cut(end)

    def _pump(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self._wait()
                if answers and self.mode == "swallow":
                    self._answers += 1
                    if self._answers % 3 == 0:
                        self.swallowed += 1
                        break
                part, what = self.fate
                if not answers and what and part in data:
                    self.met += 1
                    if self.met == 1:
                        while not _whole(data):
                            data += source.recv(65536)
                        work = threading.Thread(target=self._carry_out, args=(data, what), daemon=True)
                        work.start()
                        if what == "lost":
                            # Whoever asked gives up after five seconds.
                            work.join(4.5)
                            break
                        continue
                target.sendall(data)
        for end in (source, target):
            self._cut(end)

    def _carry_out(self, request: bytes, what: str) -> None:
        """Send a request that nobody waits for."""
        if what == "late":
            self.late.wait(120)
        with closing(socket.create_connection((_HOST, self._target))) as server:
            server.sendall(request)
            server.recv(65536)

    def _wait(self) -> None:
        while self.mode == "hang":
            time.sleep(0.02)

    def _cut(self, end: socket.socket) -> None:
        self._connections.discard(end)
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()


def _whole(request: bytes) -> bool:
    """Return whether a request has come with all of its body."""
    head, end, body = request.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
    return bool(end) and len(body) >= int(length[1] if length else 0)


class TeamServer:
    """`mlflow server` on PostgreSQL and S3, reached through a gate."""

    def __init__(self) -> None:
        # PostgreSQL's own user must be able to go there.
        self.folder = Path(tempfile.mkdtemp(prefix="dmx-server-"))
        self.folder.chmod(0o755)
        self.log = self.folder / "server.log"
        self.postgres = Postgres(self.folder)
        self.bucket = Bucket()
        self._port = free_port()
        self.gate = Gate(self._port)
        self.start()

    @property
    def uri(self) -> str:
        return f"http://{_HOST}:{self.gate.port}"

    def start(self) -> None:
        words = ("--backend-store-uri", self.postgres.uri, "--artifacts-destination", f"s3://{BUCKET}")
        address = ("--host", _HOST, "--port", str(self._port), "--workers", "1")
        self._group = Group(
            [sys.executable, "-m", "mlflow", "server", *words, *address],
            self.log,
            MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
            MLFLOW_DISABLE_TELEMETRY="true",
            OMP_NUM_THREADS="1",
            OPENBLAS_NUM_THREADS="1",
            **self.bucket.environment,
        )
        until(self._answers, _STARTS_SECONDS, "mlflow server answers")

    def _answers(self) -> bool:
        assert not self._group.ended, self.log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(f"http://{_HOST}:{self._port}/health", timeout=5):
                return True
        except OSError:
            return False

    def kill(self) -> None:
        self._group.kill()

    def freeze(self) -> None:
        self._group.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._group.signal(signal.SIGCONT)

    def close(self) -> None:
        self.kill()
        self.gate.close()
        self.bucket.close()
        self.postgres.close()
        shutil.rmtree(self.folder, ignore_errors=True)
