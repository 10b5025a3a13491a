"""What a server is told: the options of `serve.py` as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Self

from flatfix.config.options import SERVE
from flatfix.config.schema import validate
from flatfix.config.text import layered, to_yaml
from flatfix.errors import UserError
from flatfix.files import replacing

VARIABLE = "FLATFIX_SERVE_CONFIG"
"""Of the environment: names the file that `create_app` reads."""

OF_RUNS = ("paths.runs", "paths.run")  # options of serve.py, as of every entry point, that mean nothing to a server


@dataclass(frozen=True, slots=True)
class Limits:
    """Bound what clients can make a worker do; see `limits.*` in docs/options.md.

    Attributes:
        waiting: requests in the building, and pictures of them.
        waiting_mb: megabytes of their bodies.
        body_mb: largest body, in megabytes.
        megapixels: largest picture.
        files: pictures of one request.
        deadline_s: until a request is answered.
        body_s: until a body is whole.
        headers_s: until the headers are.
        idle_s: that a connection stays open without a request.
        drain_s: that requests in flight have left when the server is told to stop.
    """

    waiting: int
    waiting_mb: int
    body_mb: int
    megapixels: float
    files: int
    deadline_s: float
    body_s: float
    headers_s: float
    idle_s: float
    drain_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Hold the options of a server.

    Attributes:
        alias: that is followed.
        name: of the registered model, None for the only one.
        uri: of MLflow.
        runtime: see `Predictor`.
        precision: likewise.
        host: to listen on.
        port: to listen on.
        workers: processes.
        poll_s: between two looks at the alias.
        batch_size: pictures at most that are computed at once.
        batch_wait_s: that a batch waits for pictures that are being decoded.
        limits: of what clients can do.
        hosts: that requests may be for; empty for any.
        keys: file of the API keys.
        predict_needs_key: whether predicting needs one, too.
        journal_mb: most that the record of answers keeps.
        output: folder of what the server writes.
        cache: folder of packages and choices of a runtime.
    """

    alias: str
    name: str | None
    uri: str
    runtime: str
    precision: str
    host: str
    port: int
    workers: int
    poll_s: float
    batch_size: int
    batch_wait_s: float
    limits: Limits
    hosts: tuple[str, ...]
    keys: Path | None
    predict_needs_key: bool
    journal_mb: int
    output: Path
    cache: Path

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """Take what a server uses from a validated config."""
        keys = config["auth"]["keys"]
        if config["auth"]["predict"] and keys is None:
            raise UserError(
                "auth.predict=true: no keys to ask for. Make one with python -m flatfix.serving.keys NAME "
                "--file keys.json, and set auth.keys=keys.json"
            )
        limits = Limits(**config["limits"])
        if limits.waiting_mb < limits.body_mb:
            raise UserError(
                f"limits.waiting_mb={limits.waiting_mb}: less than limits.body_mb={limits.body_mb}, so that a body "
                "which is allowed would be refused for ever. Raise the first, or lower the second"
            )
        if limits.body_s > limits.deadline_s:
            raise UserError(
                f"limits.body_s={limits.body_s:g}: more than limits.deadline_s={limits.deadline_s:g}, which ends a "
                "request and its body. Lower the first, or raise the second"
            )
        return cls(
            alias=config["alias"],
            name=config["registry"]["name"],
            uri=config["tracking"]["uri"],
            runtime=config["runtime"],
            precision=config["precision"],
            host=config["host"],
            port=config["port"],
            workers=config["workers"],
            poll_s=config["poll_s"],
            batch_size=config["batch"]["size"],
            batch_wait_s=config["batch"]["wait_ms"] / 1000,
            limits=limits,
            hosts=tuple(map(str, config["hosts"])),
            keys=Path(keys) if keys else None,
            predict_needs_key=config["auth"]["predict"],
            journal_mb=config["journal_mb"],
            output=Path(config["paths"]["output"]),
            cache=Path(config["paths"]["cache"]),
        )


def read(file: Path | None) -> dict[str, Any]:
    """Return the options that a file sets, over the defaults; those alone without a file.

    Raises:
        UserError: naming the file, or the option that is wrong.
    """
    texts = [resources.files("flatfix.serving").joinpath("defaults.yaml").read_text(encoding="utf-8")]
    try:
        texts += [file.read_text(encoding="utf-8")] if file else []
    except OSError as error:
        raise UserError(f"{VARIABLE}={file}: cannot be read ({error.strerror})") from error
    try:
        return validate(layered(*texts), {key: rule for key, rule in SERVE.items() if key not in OF_RUNS})
    except UserError as error:
        raise UserError(f"{VARIABLE}={file}: {error}") from error


def write(config: Mapping[str, Any], file: Path) -> None:
    """Write a validated config of serve.py as `read` reads it."""
    paths = {name: config["paths"][name] for name in ("output", "cache")}
    with replacing(file) as partial:
        partial.write_text(to_yaml({**config, "paths": paths}), encoding="utf-8")
