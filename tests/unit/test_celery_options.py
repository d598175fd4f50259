"""Each option of Celery's works, or is refused; none is ignored. Its variables have no effect."""

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.core import ParameterSource

from worker.celery_options import FITTING, FITTING_BEFORE, INSTEAD, Guard

CELERY: Any = importlib.import_module("celery.bin.celery").celery
WORKER: Any = importlib.import_module("celery.bin.worker").worker
OPTIONS = {one.name: one for one in WORKER.params if one.name != "allow_unsafe"}
BEFORE = {one.name: one for one in CELERY.params}


def given(option: click.Parameter, spelled: str) -> list[str]:
    """An option with a value that Celery accepts."""
    if getattr(option, "is_flag", False):
        return [spelled]
    if isinstance(option.type, click.Choice):
        return [spelled, next(iter(option.type.choices))]
    return [spelled, "1"]


def parse(before: list[str], options: list[str]) -> click.Context:
    """What Celery's command does with these, before it starts a worker."""
    worker = click.Command(
        "worker",
        params=[*OPTIONS.values(), Guard(["--allow-unsafe"], is_flag=True)],
        context_settings={"allow_extra_args": True},
    )
    group = click.Group("celery", params=list(BEFORE.values()))
    parent = group.make_context("celery", [*before, "worker"], auto_envvar_prefix="CELERY")
    app = Celery("options", set_as_current=False)
    parent.obj = CLIContext(app=app, no_color=True, workdir=None)
    return worker.make_context("worker", options, parent=parent)


def spellings(options: dict[str, Any], *, fitting: bool) -> list[Any]:
    """Each spelling of each option that fits, or that does not."""
    fits = FITTING | FITTING_BEFORE
    return [
        pytest.param(one, spelled, id=spelled)
        for name, one in options.items()
        if (name in fits) == fitting and name not in {"version", "workdir"}
        for spelled in one.opts
    ]


@pytest.mark.parametrize(("option", "spelled"), spellings(OPTIONS, fitting=False))
def test_an_option_that_does_not_fit_is_refused(option: Any, spelled: str) -> None:
    """By its name, and with what to do instead."""
    with pytest.raises(SystemExit, match="registration-worker cannot start") as refused:
        parse([], given(option, spelled))
    assert option.opts[-1] in str(refused.value)
    assert INSTEAD.get(option.name, "no effect") in str(refused.value)


@pytest.mark.parametrize(("option", "spelled"), spellings(BEFORE, fitting=False))
def test_so_is_one_of_celery_itself(option: Any, spelled: str) -> None:
    """A broker that is named on the command line would silently not be used."""
    with pytest.raises(SystemExit, match=option.opts[-1]):
        parse(given(option, spelled), [])


def test_a_setting_behind_the_options_is_refused() -> None:
    """Celery would put it above the settings that correctness depends on."""
    with pytest.raises(SystemExit, match=r"celeryconfig\.py"):
        parse([], ["--", "worker.prefetch_multiplier=50"])


@pytest.mark.parametrize(("option", "spelled"), spellings(OPTIONS, fitting=True))
def test_the_others_work(option: Any, spelled: str) -> None:
    """As with any Celery app."""
    value = "INFO" if option.name == "loglevel" else None
    found = parse([], [spelled, value] if value else given(option, spelled))
    assert found.get_parameter_source(option.name) is ParameterSource.COMMANDLINE


def test_celerys_variables_set_no_option(monkeypatch: pytest.MonkeyPatch) -> None:
    """They belong to a surrounding service."""
    for name, option in OPTIONS.items():
        value = (given(option, "")[1:] or ["1"])[0]
        monkeypatch.setenv(f"CELERY_WORKER_{name.upper()}", value)
    found = parse([], [])
    sources = {found.get_parameter_source(name) for name in OPTIONS}
    assert sources <= {ParameterSource.DEFAULT, None}


def test_each_option_named_here_is_one_of_celerys() -> None:
    """A new version may rename some."""
    known = {*OPTIONS, *BEFORE, "allow_unsafe", "help"}
    assert FITTING | FITTING_BEFORE | INSTEAD.keys() <= known


def test_celery_says_why_the_worker_cannot_be_imported(tmp_path: Path) -> None:
    """A library that is missing or broken is named, as by Python itself."""
    (tmp_path / "redis.py").write_text("raise ImportError('libfoo.so is not there')")
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "worker", "report"],
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode
    assert "ImportError: libfoo.so is not there" in done.stderr
