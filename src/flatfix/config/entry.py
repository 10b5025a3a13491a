"""Entry points: compose, validate, call one function, and turn how it ended into an exit code."""

from __future__ import annotations

import functools
import logging
import os
import re
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import (
    CompactHydraException,
    ConfigCompositionException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf

import flatfix
from flatfix.config import help_page, resolvers
from flatfix.config.exit_codes import Ending, ExitCode
from flatfix.config.groups import read_entry, settings
from flatfix.config.instantiate import ALLOWED_TARGETS
from flatfix.config.schema import Free, Schema, validate
from flatfix.console import complain, say
from flatfix.errors import Failure, UserError, did_you_mean
from flatfix.machine import rank

Config = dict[str, Any]
# Of several processes that train one model rank 0 has the folder and the log.
OF_ANOTHER = ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=none", "hydra/hydra_logging=none"]
LOCK = ".lock"  # in the folder of a run: held by the process that trains there


def entry_point(
    name: str,
    conf: Path,
    schema: Schema,
    short: Mapping[str, str] | None = None,
    plugins: Callable[[], None] | None = None,
) -> Callable[[Callable[[Config], Any]], Callable[[], NoReturn]]:
    """Turn `task` into a command that reads `conf/<name>.yaml` and the command line.

    The task gets the validated config as plain values and returns an exit code, or something that has an `exit_code`.
    Wrong usage ends with exit code 2 and a message, anything unexpected with 3 and a traceback. Of several jobs (`-m`)
    the largest code counts, unless the sweeper that began them leaves with one of its own.

    Args:
        name: name of the primary config, without its ending.
        conf: folder of the config groups.
        schema: what every option accepts.
        short: options that the command line may also call by a shorter name, by that name: the one way to give an
            option the name of a group that other entry points have.
        plugins: registers the Hydra plugins that `conf` names and Hydra does not find by itself.
    """

    def decorate(task: Callable[[Config], Any]) -> Callable[[], NoReturn]:
        ended = ExitCode.DONE

        @functools.wraps(task)
        def job(cfg: DictConfig) -> Ending:
            nonlocal ended
            try:
                result = task(validate(cfg, schema, HydraConfig.get().overrides.task))
                ending = Ending(result if isinstance(result, ExitCode) else result.exit_code, result)
            except UserError as error:
                ending = Ending(_refuse(str(error)), reason=str(error))
                if HydraConfig.get().output_subdir:
                    _discard_untouched(Path(HydraConfig.get().runtime.output_dir), name)
            except Exception as error:
                ending = Ending(_crash(), reason=f"{type(error).__name__}: {error}")
            ended = max(ended, ending.code)
            if ending.code is ExitCode.INTERRUPTED:
                raise KeyboardInterrupt  # of several jobs, those that would follow must not begin
            return ending

        @functools.wraps(task)
        def main() -> NoReturn:
            resolvers.register()
            if plugins:
                plugins()
            sys.argv[1:] = [_spelled_out(word, short or {}) for word in sys.argv[1:]]
            if rank():
                sys.argv += OF_ANOTHER
            # SIGTERM is to clear away what is half-written, as Ctrl-C does; training handles both itself.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            # Hydra reports errors itself and exits with 1 unless this is set; we report them, with our exit codes.
            os.environ["HYDRA_FULL_ERROR"] = "1"
            try:
                if "--version" in sys.argv[1:]:
                    say(f"flatfix {flatfix.__version__}")
                elif {"--help", "-h"} & set(sys.argv[1:]):
                    help_page.show(name, conf, schema, doc=task.__doc__ or "")
                else:
                    hydra.main(config_path=str(conf), config_name=name, execution_whitelist=ALLOWED_TARGETS)(job)()
            except CompactHydraException as error:
                sys.exit(_refuse(explain(error, name, conf, schema)))
            except KeyboardInterrupt:
                if ended is not ExitCode.INTERRUPTED:
                    complain("interrupted")
                sys.exit(ExitCode.INTERRUPTED)
            except Exception as error:
                if refusal := _refusal_within(error):
                    sys.exit(_refuse(str(refusal)))
                if isinstance(error, ValueError) and _is_from_hydra(error):
                    sys.exit(_refuse(f"{' '.join(sys.argv[1:])}: {error}"))
                sys.exit(_crash())
            sys.exit(ended)

        return main

    return decorate


def _spelled_out(word: str, short: Mapping[str, str]) -> str:
    option, equals, value = word.partition("=")
    return f"{short.get(option, option)}{equals}{value}"


def explain(error: CompactHydraException, name: str, conf: Path, schema: Schema) -> str:
    """Say what is wrong with an override: the option, the valid choices and the nearest match."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        choices = [option for option in error.options if not option.startswith("_")]
        return f"{group}={choice}: no such choice. Valid: {', '.join(choices)}.{did_you_mean(choice, choices)}"
    if isinstance(error, OverrideParseException):
        name, _, value = error.override.partition("=")
        text = (value[1:-1] if re.fullmatch('".*"', value) else value).replace('"', r"\"")
        fix = f"Quote it for the shell and for Hydra: '{name}=\"{text}\"'"
        return f"{error.override}: has a character that Hydra keeps for itself. {fix}"
    key = str(getattr(error.__cause__, "full_key", None) or "")
    if any(isinstance(rule, Free) and key.startswith(f"{free}.") for free, rule in schema.items()):
        return f"{key}: not set yet. Add it with a plus: +{key}=value"
    if isinstance(error, ConfigCompositionException) and key:
        return _explain_missing(key, name, conf, schema)
    return str(error).split("\nSee https://")[0]


def _explain_missing(key: str, name: str, conf: Path, schema: Schema) -> str:
    """Say what is there in place of the option `key`, in the config that the rest of the command line composes."""
    parser = OverridesParser.create()
    words = [word for word in sys.argv[1:] if "=" in word and word.partition("=")[0].lstrip("+~") != key]
    overrides = [word for word in words if not parser.parse_override(word).is_sweep_override()]  # not of one config
    with hydra.initialize_config_dir(str(conf)):
        try:
            cfg = hydra.compose(name, overrides=overrides, return_hydra_config=True)
        except CompactHydraException:
            cfg = hydra.compose(name, return_hydra_config=True)
    groups = read_entry(conf, name).groups
    if others := settings([group for group in groups if group.package], key):
        chosen = f"{others[0].group.name}={cfg.hydra.runtime.choices[others[0].group.name]}"
        valid = " or ".join(f"{group.name}={choice.name}" for group, choice, _ in others)
        return f"{key}: not an option of {chosen}. Add {valid}."
    parent, dot, leaf = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    known = {option.removeprefix(parent + dot).split(".")[0] for option in schema if option.startswith(parent + dot)}
    here = known & {str(option) for option in node or {}} | ({group.name for group in groups} if not parent else set())
    if parent.startswith("hydra."):  # its own options, which no schema of ours lists
        here = {str(option) for option in node or {}}
    near = did_you_mean(leaf, here) or did_you_mean(leaf, known)
    if known and not here:
        return (
            f"{key}: no such option. {parent} has none as chosen; other choices have {', '.join(sorted(known))}.{near}"
        )
    return f"{key}: no such option. Valid beside it: {', '.join(sorted(here))}.{near}"


def _refusal_within(error: BaseException | None) -> UserError | None:
    """Return what a sweeper of ours raised, or a resolver, whose errors OmegaConf and Hydra wrap; else None."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error


def _is_from_hydra(error: BaseException) -> bool:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return Path(hydra.__file__).parent in Path(last.filename).parents


def _refuse(message: str) -> ExitCode:
    if not rank():  # the others were started alike: each would say the same
        complain(f"error: {message}\nSee --help for every option.")
    return ExitCode.USAGE


def _crash() -> ExitCode:
    error = sys.exception()
    complain(f"error: {error}" if isinstance(error, Failure) else traceback.format_exc())
    return ExitCode.ERROR


def command_line() -> list[str] | None:
    """Return the words of the command that began this job, None where no command did."""
    return sys.argv if HydraConfig.initialized() else None


def go_on_in(folder: Path) -> None:
    """Let this job go on in the folder of an earlier one, and its log in that one's; the folder made for it goes."""
    if not HydraConfig.initialized() or not HydraConfig.get().output_subdir:
        return
    made, name = Path(HydraConfig.get().runtime.output_dir), HydraConfig.get().job.name
    log = made / f"{name}.log"
    if made == folder or (log.is_file() and log.stat().st_size):
        return
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler) and Path(handler.baseFilename) == log:
            handler.close()  # it opens its file again when there is something to log
            handler.baseFilename = str(folder / log.name)
    _discard_untouched(made, name)


def _discard_untouched(folder: Path, job_name: str) -> None:
    """Remove a run folder that holds nothing but what was written there before the config was checked."""
    if folder.is_dir() and {path.name for path in folder.iterdir()} <= {".hydra", f"{job_name}.log", LOCK}:
        shutil.rmtree(folder)
