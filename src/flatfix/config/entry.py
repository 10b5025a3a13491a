"""Entry points: compose, validate, call one function, and turn how it ended into an exit code."""

from __future__ import annotations

import functools
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, ConfigCompositionException, MissingConfigException
from omegaconf import DictConfig, OmegaConf

from flatfix.config import help_page, resolvers
from flatfix.config.exit_codes import ExitCode
from flatfix.config.instantiate import ALLOWED_TARGETS
from flatfix.config.schema import Free, Schema, validate
from flatfix.console import complain
from flatfix.errors import UserError, did_you_mean

Config = dict[str, Any]


def entry_point(
    name: str, conf: Path, schema: Schema
) -> Callable[[Callable[[Config], ExitCode]], Callable[[], NoReturn]]:
    """Turn `task` into a command that reads `conf/<name>.yaml` and the command line.

    The task gets the validated config as plain values and returns an exit code. Wrong usage ends with exit code 2 and
    a message, anything unexpected with 3 and a traceback. Of several jobs (`-m`) the largest code counts.

    Args:
        name: name of the primary config, without its ending.
        conf: folder of the config groups.
        schema: what every option accepts.
    """

    def decorate(task: Callable[[Config], ExitCode]) -> Callable[[], NoReturn]:
        ended = ExitCode.DONE

        @functools.wraps(task)
        def job(cfg: DictConfig) -> None:
            nonlocal ended
            try:
                ended = max(ended, task(validate(cfg, schema, HydraConfig.get().overrides.task)))
            except UserError as error:
                ended = max(ended, _refuse(str(error)))
                if HydraConfig.get().output_subdir:
                    _discard_untouched(Path(HydraConfig.get().runtime.output_dir), name)
            except Exception:
                ended = max(ended, _crash())
            if ended is ExitCode.INTERRUPTED:
                raise KeyboardInterrupt  # of several jobs, those that would follow must not begin

        @functools.wraps(task)
        def main() -> NoReturn:
            resolvers.register()
            # Hydra reports errors itself and exits with 1 unless this is set; we report them, with our exit codes.
            os.environ["HYDRA_FULL_ERROR"] = "1"
            try:
                if {"--help", "-h"} & set(sys.argv[1:]):
                    help_page.show(name, conf, schema, doc=task.__doc__ or "")
                else:
                    hydra.main(config_path=str(conf), config_name=name, execution_whitelist=ALLOWED_TARGETS)(job)()
            except CompactHydraException as error:
                sys.exit(_refuse(explain(error, name, conf, schema)))
            except ValueError as error:
                sys.exit(_refuse(f"{' '.join(sys.argv[1:])}: {error}") if _is_from_hydra(error) else _crash())
            except KeyboardInterrupt:
                sys.exit(ExitCode.INTERRUPTED)
            except Exception:
                sys.exit(_crash())
            sys.exit(ended)

        return main

    return decorate


def explain(error: CompactHydraException, name: str, conf: Path, schema: Schema) -> str:
    """Say what is wrong with an override: the option, the valid choices and the nearest match."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        choices = [option for option in error.options if not option.startswith("_")]
        return f"{group}={choice}: no such choice. Valid: {', '.join(choices)}.{did_you_mean(choice, choices)}"
    key = str(getattr(error.__cause__, "full_key", None) or "")
    if any(isinstance(rule, Free) and key.startswith(f"{free}.") for free, rule in schema.items()):
        return f"{key}: not set yet. Add it with a plus: +{key}=value"
    if isinstance(error, ConfigCompositionException) and key:
        siblings = _options_beside(key, name, conf)
        leaf = key.rpartition(".")[2]
        return f"{key}: no such option. Valid beside it: {', '.join(siblings)}.{did_you_mean(leaf, siblings)}"
    return str(error).split("\nSee https://")[0]


def _options_beside(key: str, name: str, conf: Path) -> list[str]:
    """List the options beside `key` in the config that the rest of the command line composes."""
    overrides = [word for word in sys.argv[1:] if "=" in word and word.partition("=")[0].lstrip("+~") != key]
    with hydra.initialize_config_dir(str(conf)):
        try:
            cfg = hydra.compose(name, overrides=overrides)
        except CompactHydraException:
            cfg = hydra.compose(name)
    parent = OmegaConf.select(cfg, key.rpartition(".")[0]) if "." in key else cfg
    return sorted(str(option) for option in parent if not str(option).startswith("_")) if parent is not None else []


def _is_from_hydra(error: BaseException) -> bool:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return Path(hydra.__file__).parent in Path(last.filename).parents


def _refuse(message: str) -> ExitCode:
    complain(f"error: {message}\nSee --help for every option.")
    return ExitCode.USAGE


def _crash() -> ExitCode:
    complain(traceback.format_exc())
    return ExitCode.ERROR


def _discard_untouched(folder: Path, job_name: str) -> None:
    """Remove a run folder that holds nothing but what Hydra wrote there before the config was checked."""
    if folder.is_dir() and {path.name for path in folder.iterdir()} <= {".hydra", f"{job_name}.log"}:
        shutil.rmtree(folder)
