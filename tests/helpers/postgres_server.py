"""A real PostgreSQL on the loopback interface, with an empty database."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

from tests.helpers.server import Server, free_ports


class PostgresServer(Server):
    """`postgres` over a folder of its own below /tmp, which goes with it; everybody on this machine may do everything.

    PostgreSQL refuses to work for root: there it runs as `nobody`, who may not look into the folders of a test.
    """

    def __init__(self) -> None:
        super().__init__(Path(tempfile.mkdtemp(prefix="flatfix-postgres-")), free_ports(1))
        # Without the name of its driver, SQLAlchemy 2.1 would look for another one.
        self.uri = f"postgresql+psycopg2://flatfix@127.0.0.1:{self.ports[0]}/postgres"

    def start(self) -> None:
        """Start the server, over a new database the first time."""
        data = self.folder / "data"
        if not data.exists():
            if os.geteuid() == 0:
                shutil.chown(self.folder, "nobody")
            command = [*_as_nobody(), _program("initdb"), f"--pgdata={data}", "--username=flatfix", "--auth=trust"]
            command += ["--encoding=UTF8", "--no-locale", "--no-sync"]
            subprocess.run(command, cwd=self.folder, check=True, capture_output=True)
        super().start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, traceback)
        shutil.rmtree(self.folder)

    def _command(self) -> list[str]:
        command = [*_as_nobody(), _program("postgres"), "-D", str(self.folder / "data"), "-p", str(self.ports[0])]
        settings = ["listen_addresses=127.0.0.1", "unix_socket_directories=", "max_connections=200", "fsync=off"]
        return command + [part for setting in settings for part in ("-c", setting)]

    def _is_ready(self) -> bool:
        command = [_program("pg_isready"), "--quiet", "--host=127.0.0.1", f"--port={self.ports[0]}"]
        return subprocess.run(command).returncode == 0


def _program(name: str) -> str:
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name))
    found = shutil.which(name, path=os.pathsep.join([*map(str, reversed(folders)), os.environ["PATH"]]))
    assert found, f"{name}: not installed: apt-get install postgresql"
    return found


def _as_nobody() -> list[str]:
    return ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--"] if os.geteuid() == 0 else []
