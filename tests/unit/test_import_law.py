"""The table of docs/architecture.md as data, and the reader of imports that holds the house to it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "flatfix"


@dataclass(frozen=True)
class Room:
    """What the modules of a room may import beside the standard library, numpy, the ground, `config` and each other.

    A name allows what lies below it too: `flatfix.data` allows `flatfix.data.store`. `only` adds names for single
    modules; `never` takes modules of allowed rooms out again.
    """

    may: frozenset[str] = frozenset()
    only: dict[str, frozenset[str]] = field(default_factory=dict)
    never: frozenset[str] = frozenset()


def names(text: str) -> frozenset[str]:
    return frozenset(text.split())


LAW = {
    "config": Room(names("hydra omegaconf yaml rich flatfix.evaluation.metrics")),  # the names of the metrics
    "inference": Room(names("PIL simplejpeg onnxruntime openvino")),
    "evaluation": Room(
        names("scipy sklearn pyarrow matplotlib jinja2 flatfix.inference.decision"),
        only={"thumbnails": names("PIL")},  # pictures become the files that the report shows
    ),
    "notify": Room(),
    "data": Room(
        names("flatfix.inference.decode pyarrow"),
        only={
            "s3": names("boto3 botocore"),
            "datamodule": names("lightning torch"),
            "sources.cifar10": names("torch torchvision PIL"),
            "sources.tires": names("PIL"),  # it draws pictures rather than reading them
        },
    ),
    "models": Room(
        names(
            "torch timm torchvision onnx safetensors flatfix.inference.card flatfix.inference.package"
            " flatfix.inference.runtime flatfix.inference.decision"
        )
    ),
    # MLflow passes on what goes wrong in a database as SQLAlchemy raised it.
    "tracking": Room(names("mlflow"), only={"connection": names("sqlalchemy.exc")}),
    "registry": Room(
        names("mlflow flatfix.tracking flatfix.inference flatfix.evaluation flatfix.data flatfix.notify"),
        only={"packages": names("onnx")},  # MLflow's flavour takes a model as onnx reads it
        never=names("flatfix.data.datamodule"),
    ),
    "training": Room(
        names(
            "lightning timm torch torchmetrics flatfix.data flatfix.models flatfix.tracking flatfix.evaluation"
            " flatfix.inference.decision flatfix.inference.package flatfix.registry flatfix.notify"
        ),
        only={"batch_size": names("psutil")},  # how much memory is free
    ),
    "prediction": Room(
        names("torch pyarrow flatfix.data flatfix.models flatfix.inference flatfix.registry flatfix.tracking"),
        never=names("flatfix.data.datamodule"),
    ),
    "sweeps": Room(
        names(
            "optuna hydra hydra_plugins omegaconf cloudpickle mlflow flatfix.tracking flatfix.registry flatfix.training"
            " flatfix.evaluation.metrics flatfix.evaluation.figures flatfix.evaluation.wording"
        ),
        only={
            "processes": names("pynvml"),  # it divides the GPUs
            "figures": names("matplotlib"),
            "page": names("jinja2 plotly"),
            "storage": names("sqlalchemy"),
            "trial_job": names("sqlalchemy.exc"),
            "worker": names("psutil"),
            "ray_launcher": names("ray"),
            "slurm_launcher": names("submitit"),
        },
    ),
    "serving": Room(
        # Starlette and pydantic are FastAPI's own parts, httptools uvicorn's.
        names(
            "fastapi starlette pydantic uvicorn httptools python_multipart prometheus_client flatfix.inference"
            " flatfix.registry flatfix.evaluation flatfix.tracking.connection flatfix.data.store"
        ),
        only={"load": names("matplotlib uvloop"), "source": names("mlflow.tracking")},  # a type
    ),
    "monitoring": Room(
        names(
            "scipy prometheus_client flatfix.inference flatfix.evaluation flatfix.registry flatfix.tracking"
            " flatfix.data.store flatfix.notify"
        )
    ),
}
GROUND = {
    "__init__": names(""),
    "errors": names(""),
    "files": names("flatfix.errors"),
    "machine": names(""),
    "memory": names(""),
    "console": names("rich"),
}
ANY_ROOM_MAY = names("numpy flatfix.errors flatfix.files flatfix.machine flatfix.memory flatfix.console flatfix.config")
# These serve and watch where torch is not installed: nothing that their import runs may lead to it.
WITHOUT_TORCH = names("config inference evaluation notify tracking registry serving monitoring")
TORCH = names("torch torchvision lightning timm torchmetrics")


@dataclass(frozen=True)
class Import:
    """One name that a module imports; `is_eager` when importing the module runs it."""

    name: str
    line: int
    is_eager: bool


def modules(package: Path) -> dict[str, Path]:
    """Return {dotted name: file} of every module of the package."""
    found = {}
    for file in sorted(package.rglob("*.py")):
        parts = (package.name, *file.relative_to(package).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(module: str, file: Path, known: dict[str, Path]) -> Iterator[Import]:
    """Yield what a module imports: absolute, relative, inside functions, for type checking, and by `import_module`."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]

    def walk(node: ast.AST, is_eager: bool) -> Iterator[Import]:
        match node:
            case ast.Import():
                for alias in node.names:
                    yield Import(alias.name, node.lineno, is_eager)
            case ast.ImportFrom():
                above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                base = ".".join([*above, *([node.module] if node.module else [])])
                for alias in node.names:
                    # `from flatfix.data import store` imports a module; `from flatfix.data import open_version` a name.
                    submodule = f"{base}.{alias.name}"
                    yield Import(submodule if submodule in known else base, node.lineno, is_eager)
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield Import(name, node.lineno, is_eager)
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.iter_child_nodes(node):
            runs = is_eager and not is_function and not (typing_only and child in node.body)
            yield from walk(child, runs)

    return walk(ast.parse(file.read_text(), str(file)), True)


def is_within(name: str, allowed: frozenset[str]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in allowed)


def violations(package: Path) -> list[str]:
    """Return one line for each import that the law forbids: file, line, the name, and what is allowed there."""
    known = modules(package)
    found = []
    for module, file in known.items():
        _, _, below = module.partition(".")
        room, _, inside = below.partition(".")
        if room in LAW:
            law = LAW[room]
            allowed = law.may | law.only.get(inside, frozenset()) | ANY_ROOM_MAY | {f"flatfix.{room}"}
            never, where = law.never, f"{room}/"
        else:
            allowed = GROUND.get(room or "__init__", frozenset())
            never, where = frozenset(), file.name
        for wanted in imports(module, file, known):
            name = wanted.name
            if name.partition(".")[0] in sys.stdlib_module_names or name == "flatfix":
                continue
            if not is_within(name, allowed) or is_within(name, never):
                rule = ", ".join(sorted(allowed)) + "".join(f", but not {name}" for name in sorted(never))
                place = f"{file.relative_to(package.parent)}:{wanted.line}"
                found.append(f"{place}: {where} may not import {name}; it may import {rule or 'nothing'}")
    return found


def ways_to_torch(package: Path) -> list[str]:
    """Return, for each module that works without torch, the chain of imports that would run torch's."""
    known = modules(package)
    eager = {
        module: [wanted.name for wanted in imports(module, file, known) if wanted.is_eager]
        for module, file in known.items()
    }

    def follow(chain: tuple[str, ...], seen: set[str]) -> Iterator[str]:
        for name in eager[chain[-1]]:
            if is_within(name, TORCH):
                yield " → ".join((*chain, name))
            # Importing a.b.c runs a and a.b first.
            parts = name.split(".")
            for step in (".".join(parts[:end]) for end in range(1, len(parts) + 1)):
                if step in known and step not in seen:
                    seen.add(step)
                    yield from follow((*chain, step), seen)

    return [
        way
        for module in known
        if len(module.split(".")) == 1 or module.split(".")[1] in WITHOUT_TORCH | GROUND.keys()
        for way in follow((module,), {module})
    ]


def plant(folder: Path, files: dict[str, str]) -> Path:
    package = folder / "flatfix"
    for path, text in files.items():
        file = package / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        for parent in file.relative_to(package).parents:
            (package / parent / "__init__.py").touch()
    return package


def test_no_module_imports_what_its_room_may_not():
    found = violations(PACKAGE)
    assert not found, "\n".join(found)


def test_what_runs_without_torch_never_leads_to_it():
    found = ways_to_torch(PACKAGE)
    assert not found, "\n".join(found)


def test_every_room_is_in_the_table():
    rooms = {file.relative_to(PACKAGE).parts[0] for file in PACKAGE.glob("*/**/*.py")}
    assert rooms <= LAW.keys()


def test_the_ground_holds_only_what_every_room_may_use():
    assert {file.stem for file in PACKAGE.glob("*.py")} <= GROUND.keys()


@pytest.mark.parametrize(
    ("path", "text", "forbidden"),
    [
        ("errors.py", "import rich", "rich"),
        ("console.py", "from flatfix.data import store", "flatfix.data"),
        ("inference/decode.py", "import torch", "torch"),
        ("inference/runtime.py", "from ..models import classifier", "flatfix.models"),
        ("evaluation/report.py", "import numpy, mlflow.artifacts", "mlflow.artifacts"),
        ("notify/slack.py", "import requests", "requests"),
        ("data/publish.py", "import boto3", "boto3"),
        ("data/cache.py", "from torch import Tensor", "torch"),
        ("data/sources/elpv.py", "import torchvision.datasets", "torchvision.datasets"),
        ("data/datamodule.py", "from flatfix.inference import package", "flatfix.inference"),
        ("models/export.py", "from flatfix.inference.decode import decode", "flatfix.inference.decode"),
        ("tracking/run.py", "from lightning import LightningModule", "lightning"),
        ("registry/promote.py", "from flatfix.data.datamodule import Batch", "flatfix.data.datamodule"),
        ("registry/register.py", "from flatfix.training import run", "flatfix.training"),
        ("training/run.py", "from omegaconf import DictConfig", "omegaconf"),
        ("training/callbacks.py", "import optuna", "optuna"),
        ("sweeps/search.py", "from lightning import Trainer", "lightning"),
        ("serving/app.py", "import torch.nn", "torch.nn"),
        ("serving/capture.py", "from flatfix.data.publish import publish", "flatfix.data.publish"),
        ("monitoring/drift.py", "from flatfix.serving import metrics", "flatfix.serving"),
    ],
)
@pytest.mark.parametrize(
    "wrapping",
    [
        "{}\n",
        "def late():\n    {}\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    {}\n",
        "try:\n    {}\nexcept ImportError:\n    pass\n",
    ],
    ids=["at the top", "in a function", "for type checking", "tried"],
)
def test_a_planted_import_is_reported_with_its_place_and_the_rule(tmp_path, path, text, forbidden, wrapping):
    planted = wrapping.format(text)
    line = planted[: planted.index(text)].count("\n") + 1
    (report,) = violations(plant(tmp_path, {path: planted}))
    where = path.split("/")[0] + "/" * ("/" in path)
    assert report.startswith(f"flatfix/{path}:{line}: {where} may not import {forbidden}; it may import ")


@pytest.mark.parametrize(
    "text",
    [
        "from ..data.datamodule import Batch",
        "from ..data import datamodule",
        "from flatfix.data import datamodule",
        "import flatfix.data.datamodule as there",
        "import importlib\nimportlib.import_module('flatfix.data.datamodule')",
    ],
)
def test_every_spelling_of_an_import_is_read(tmp_path, text):
    package = plant(tmp_path, {"registry/evaluate.py": text, "data/datamodule.py": "import torch"})
    (report,) = violations(package)
    assert "registry/ may not import flatfix.data.datamodule" in report
    assert report.endswith("but not flatfix.data.datamodule")


def test_what_the_table_allows_is_not_reported(tmp_path):
    files = {
        "data/s3.py": "import boto3\nfrom botocore.config import Config\nfrom .. import __version__",
        "data/store.py": "import os",
        "data/datamodule.py": "import lightning as L\nimport torch\nfrom flatfix.inference import decode",
        "data/sources/cifar10.py": "from torchvision.datasets import CIFAR10\nfrom ..manifest import Manifest",
        "data/manifest.py": "import json\nimport numpy as np\nfrom flatfix.errors import UserError",
        "inference/decode.py": "from PIL import Image\nfrom flatfix.console import say",
        "inference/package.py": "import onnxruntime",
        "models/export.py": "from ..inference import package\nimport timm.models",
        "registry/register.py": "from flatfix.data.version import open_version\nfrom flatfix.data import manifest",
        "serving/app.py": "from flatfix.data.store import LocalStore\nfrom flatfix.data import store\nimport fastapi",
        "training/run.py": "from flatfix.config.schema import validate\nfrom flatfix.data import open_version",
        "sweeps/search.py": "from hydra.core.plugins import Plugins\nimport optuna\nimport omegaconf",
    }
    assert violations(plant(tmp_path, files)) == []


def test_a_way_to_torch_over_allowed_imports_is_found(tmp_path):
    files = {
        "serving/app.py": "from flatfix.data.store import Store",
        "data/__init__.py": "from .datamodule import Batch",
        "data/store.py": "import os",
        "data/datamodule.py": "from torch import Tensor",
    }
    package = plant(tmp_path, files)
    assert violations(package) == []
    assert ways_to_torch(package) == ["flatfix.serving.app → flatfix.data → flatfix.data.datamodule → torch"]


def test_an_import_that_waits_for_a_call_is_no_way_to_torch(tmp_path):
    files = {
        "registry/pick.py": "from flatfix.data.sources import cifar10",
        "data/sources/cifar10.py": "def read():\n    import torchvision",
    }
    assert ways_to_torch(plant(tmp_path, files)) == []
