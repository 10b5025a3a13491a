"""The versions of a registered model, as Flatfix registers them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from flatfix.errors import UserError, did_you_mean, enumerated
from flatfix.registry.patience import patiently

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow.entities.model_registry import ModelVersion, RegisteredModel
    from mlflow.store.entities import PagedList
    from mlflow.tracking import MlflowClient

T = TypeVar("T")

JOURNAL_TAG = "flatfix.journal"  # of a registered model: the run that holds its history; see `journal`
STAGE_TAG = "stage"  # of a version: for readers, since the moves say which stage it is in
DIGEST_TAG = "package_digest"  # of a version that Flatfix registered: the sha256 of its card
CANDIDATE = "candidate"


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a registered model: the model of one run.

    Attributes:
        name: of the registered model.
        number: 1 for the first.
        run_id: the run that trained it.
        created_ms: when it was registered, in milliseconds since 1970.
        tags: as MLflow holds them; see `register`.
        source: where its package lies.
    """

    name: str
    number: int
    run_id: str
    created_ms: int
    tags: Mapping[str, str]
    source: str

    @property
    def stage(self) -> str:
        """What its tag says: candidate, staging, production or archived; nothing where somebody removed the tag."""
        return self.tags.get(STAGE_TAG, "")

    @property
    def model_name(self) -> str:
        """The backbone."""
        return self.tags["model_name"]

    @property
    def dataset_name(self) -> str:
        """The dataset that it was trained on."""
        return self.tags["dataset_name"]

    @property
    def dataset_version(self) -> str:
        """The version of the dataset that it was trained on."""
        return self.tags["dataset_version"]

    @property
    def dataset_digest(self) -> str:
        """The digest of that dataset version."""
        return self.tags["dataset_digest"]

    @property
    def validation(self) -> dict[str, float]:
        """Its metrics on the validation split, which choose."""
        return self._metrics("val/")

    @property
    def test(self) -> dict[str, float]:
        """Its metrics on the test split, which judge."""
        return self._metrics("test/")

    def _metrics(self, prefix: str) -> dict[str, float]:
        return {key.removeprefix(prefix): float(text) for key, text in self.tags.items() if key.startswith(prefix)}


def registered_name(client: MlflowClient, name: str | None) -> str:
    """Return the name of the only registered model that Flatfix made, or `name` where it is one of them.

    Raises:
        UserError: none, several, or another name.
    """
    names = sorted(
        model.name
        for model in _whole(lambda token: client.search_registered_models(page_token=token))
        if is_ours(model)
    )
    if name is None and len(names) == 1:
        name = names[0]
    if name is not None and name in names:
        return name
    if not names:
        raise UserError(
            f"registry.name={name or 'null'}: nothing is registered at this tracking.uri yet. "
            "Train a model that qualifies, or register a run: promote.py action=register run_id=…"
        )
    near = did_you_mean(name, names) if name else " Choose one."
    what = f"registry.name={name}: no such registered model" if name else "registry.name: there are several"
    raise UserError(f"{what}.{near} Registered models here:{enumerated(names)}")


def list_versions(client: MlflowClient, name: str) -> list[Version]:
    """Return every version that Flatfix registered, oldest first.

    Of two versions of one run only the older counts: the other is left of two that registered the run at once. What
    was put into the registered model by other means (it has no tag `package_digest`) is not a version for Flatfix.
    """
    found = _whole(lambda token: client.search_model_versions(f"name='{name}'", page_token=token))
    versions: dict[str, Version] = {}
    for version in sorted(map(_version, filter(_is_registered, found)), key=lambda version: version.number):
        versions.setdefault(version.run_id, version)
    return list(versions.values())


def aliases(client: MlflowClient, name: str) -> dict[str, int]:
    """Return the number of the version that each alias of a registered model points at."""
    model = patiently(lambda: client.get_registered_model(name))
    return {alias: int(number) for alias, number in model.aliases.items()}


def find(client: MlflowClient, name: str, which: str, option: str = "alias") -> Version:
    """Return the version that an alias (`production`) or a number (`7`) names.

    Raises:
        UserError: there is none; the message names `option`, and says what there is.
    """
    numbers = {version.number: version for version in list_versions(client, name)}
    known = aliases(client, name)
    number = int(which) if which.isdecimal() else known.get(which)
    if number in numbers:
        return numbers[number]
    held = [f"@{alias} (version {number})" for alias, number in sorted(known.items())]
    raise UserError(
        f"{option}={which}: registered model {name} has none. It has {_numbers(list(numbers))}, "
        f"and {'the aliases ' + ', '.join(held) if held else 'no alias'}.{did_you_mean(which, known)}"
    )


def is_ours(model: RegisteredModel) -> bool:
    """Say whether Flatfix made a registered model."""
    return JOURNAL_TAG in model.tags


def _numbers(numbers: Sequence[int]) -> str:
    if len(numbers) < 2:
        return f"version {numbers[0]}" if numbers else "no version"
    return f"versions {', '.join(map(str, numbers))}"


def _is_registered(version: ModelVersion) -> bool:
    return DIGEST_TAG in version.tags


def _version(version: ModelVersion) -> Version:
    return Version(
        version.name,
        int(version.version),
        version.run_id or "",
        int(version.creation_timestamp),
        dict(version.tags),
        version.source or "",
    )


def _whole(page: Callable[[str | None], PagedList[T]]) -> Iterator[T]:
    """Yield what MLflow gives in pages."""
    token = None
    while True:
        found = patiently(lambda token=token: page(token))  # type: ignore[misc]
        yield from found
        token = found.token
        if not token:
            return
