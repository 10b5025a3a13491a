"""A real S3 server (SeaweedFS, from PyPI) on the loopback interface."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import sysconfig
from collections.abc import Sequence
from contextlib import suppress
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pytest
from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from flatfix.data import s3
from tests.helpers.server import Server, free_ports

SERVERS = ("master", "volume", "filer", "s3")  # one process runs them all
DEVELOPMENT_PORTS = range(8327, 8335)  # S3 on 8333, as SeaweedFS has it by itself
PORTS = tuple(f"{server}.port{kind}" for server in SERVERS for kind in ("", ".grpc"))


class S3Server(Server):
    """`weed server -s3` over `folder`, with one bucket.

    Two users exist: `owner` may do everything, `lister` may list but not read. Kill it: a gentle end takes 15 s, in
    which it waits for itself.
    """

    def __init__(self, folder: Path, bucket: str = "pictures", ports: Sequence[int] | None = None) -> None:
        super().__init__(folder, ports or free_ports(len(PORTS)))
        self.bucket = bucket
        self._port_of = dict(zip(PORTS, self.ports, strict=True))
        self.port = self._port_of["s3.port"]
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def become(self, user: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make Flatfix, here and in processes that the test starts, talk to this server as the user."""
        use_aws(
            monkeypatch,
            AWS_ENDPOINT_URL=self.endpoint,
            AWS_ACCESS_KEY_ID=user,
            AWS_SECRET_ACCESS_KEY=f"secret of {user}",
        )

    @cached_property
    def client(self) -> Any:
        """A boto3 client of the owner."""
        return Session().client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id="owner",
            aws_secret_access_key="secret of owner",
            config=Config(connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 1}),
        )

    def put(self, key: str, content: bytes) -> str:
        """Store an object in the bucket and return its address."""
        self.client.put_object(Bucket=self.bucket, Key=key, Body=content)
        return f"s3://{self.bucket}/{key}"

    def start(self) -> None:
        """Start the server and wait until its bucket can be written to."""
        (self.folder / "data").mkdir(parents=True, exist_ok=True)
        users = {"identities": [_user("owner", "Admin"), _user("lister", "List")]}
        (self.folder / "users.json").write_text(json.dumps(users))
        super().start()

    def _command(self) -> list[str]:
        weed = shutil.which("weed", path=sysconfig.get_path("scripts"))
        assert weed, "not installed: make setup"
        command = [weed, f"-logdir={self.folder}", "server", f"-dir={self.folder / 'data'}", "-filer", "-s3"]
        command += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.config={self.folder / 'users.json'}"]
        command += [f"-{option}={port}" for option, port in self._port_of.items()]
        command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
        # A single master needs no election, and no 15 s of warm-up when it starts again.
        command += ["-master.peers=none", "-master.resumeState=false"]
        return [*command, "-master.volumeSizeLimitMB=64", "-volume.max=100", "-volume.minFreeSpace=0"]

    def _environment(self) -> dict[str, str]:
        return {"WEED_FILER_OPTIONS_MAX_FILE_NAME_LENGTH": "1024"}  # of a key in S3; SeaweedFS has 255 by itself

    def _is_ready(self) -> bool:
        try:
            with suppress(self.client.exceptions.BucketAlreadyExists, self.client.exceptions.BucketAlreadyOwnedByYou):
                self.client.create_bucket(Bucket=self.bucket)
            self.put("is it ready?", b"yes")
            self.client.delete_object(Bucket=self.bucket, Key="is it ready?")
        except (BotoCoreError, ClientError):
            return False
        return True

    def _end(self, how: signal.Signals) -> None:
        super()._end(how)
        for port in self.ports:
            for left_behind in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left_behind.unlink()


def use_aws(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    """Set these variables of the AWS tools for a test, and no others, whatever the developer has in `~/.aws`."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    nowhere = dict.fromkeys(("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"), os.devnull)
    for name, value in {**nowhere, "AWS_EC2_METADATA_DISABLED": "true", **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(s3, "client", cache(s3.client.__wrapped__))  # for the test alone


def _user(name: str, action: str) -> dict[str, Any]:
    credentials = {"accessKey": name, "secretKey": f"secret of {name}"}
    return {"name": name, "credentials": [credentials], "actions": [action]}


def main() -> None:
    """Run a server for development on the same port and data each time, until Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = Path("outputs/s3").absolute()
    with suppress(KeyboardInterrupt), S3Server(folder, "lake", DEVELOPMENT_PORTS) as server:
        print(f"An S3 server with the bucket {server.bucket}; its files: {folder}. In another terminal:\n")
        print(f"export AWS_ENDPOINT_URL={server.endpoint}")
        print("export AWS_ACCESS_KEY_ID=owner AWS_SECRET_ACCESS_KEY='secret of owner'")
        print(f"{sys.executable} publish.py dataset=tires store=s3 store.uri=s3://{server.bucket}/vision\n")
        print("Ctrl-C ends it.", flush=True)
        server.wait()


if __name__ == "__main__":
    main()
