"""Options of the command line, made of dataclasses: one a field, with its help and its default; files of them; presets."""

import tomllib
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from types import UnionType
from typing import get_args, get_origin, get_type_hints

import click
from click.core import ParameterSource

from ray_jobs.cluster import check_paths
from ray_jobs.options import PRESETS, Selection

RENAMED = {"from_path": "from"}
PLACES = (
    "data", "train", "test", "from_path", "val_labels", "selection", "to", "distilled", "out", "store", "classes", "embeddings",
    "frontier", "mae",
)  # fmt: skip


class Sectioned(click.Option):
    """An option that knows what kind of thing it says."""

    def __init__(self, *names, section: str, **attributes):
        super().__init__(*names, **attributes)
        self.section = section


class Command(click.Command):
    """A command whose help has the options of each dataclass under a heading, the first sentence of its docstring."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):
                sections.setdefault(getattr(parameter, "section", "Options"), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


command = partial(click.command, cls=Command)


def options(*groups: type, without: tuple[str, ...] = ()) -> Callable:
    """Add an option for every field of some dataclasses; the command gets one object of each, in that order.

    A name that two of them have belongs to the first; the other keeps its default.
    """

    def asked(group: type) -> list:
        taken = {f.name for earlier in groups[: groups.index(group)] for f in fields(earlier)}
        return [f for f in fields(group) if f.name not in {*without, *taken}]

    def decorate(function: Callable) -> Callable:
        def call(**values):
            _check_places(values)
            built = [group(**{f.name: values.pop(f.name) for f in asked(group)}) for group in groups]
            return function(*built, **values)

        call.__name__, call.__doc__ = function.__name__, function.__doc__
        call.__click_params__ = getattr(function, "__click_params__", [])
        for group in reversed(groups):
            hints = get_type_hints(group)
            for f in reversed(asked(group)):
                call = _click_option(f, hints[f.name], group.__doc__.partition(".")[0])(call)
        if Selection in groups:
            call = click.option(
                "--preset", type=click.Choice(list(PRESETS)), is_eager=True, expose_value=False, callback=_use_preset,
                help="paper: eq. 10 as printed; reference: what the published code does; default: ours.",
            )(call)  # fmt: skip
        return click.option(
            "--config", metavar="FILE", is_eager=True, expose_value=False, callback=_read_config,
            help="A TOML file of these options; the command line wins.",
        )(call)  # fmt: skip

    return decorate


def given() -> set[str]:
    """Options that the user gave to the running command: on the command line, in a file or by a preset."""
    context = click.get_current_context()
    return {name for name in context.params if context.get_parameter_source(name) != ParameterSource.DEFAULT}


def _check_places(values: dict) -> None:
    """In a submitted job a relative path is an error, before anything is looked for there."""
    for name in PLACES:
        given = values.get(name)
        for path in given if isinstance(given, tuple) else (given,):
            check_paths(**{RENAMED.get(name, name): path})


def _click_option(f, hint: type, section: str) -> Callable:
    name = "--" + RENAMED.get(f.name, f.name).replace("_", "-")
    if isinstance(hint, UnionType):
        hint = next(kind for kind in get_args(hint) if kind is not type(None))
    told = f.default not in (None, ()) or ("[default:" not in f.metadata["help"] and "none")
    shared = {"help": f.metadata["help"], "show_default": told, "cls": Sectioned, "section": section}
    if hint is bool:
        return click.option(name, f.name, is_flag=True, default=f.default, **shared | {"show_default": "off"})
    if get_origin(hint) is tuple:
        return click.option(name, f.name, multiple=True, metavar=f.metadata["metavar"], **shared)
    kind = click.Choice(f.metadata["choices"]) if f.metadata["choices"] else hint
    return click.option(name, f.name, type=kind, default=f.default, metavar=f.metadata["metavar"], **shared)


def _read_config(context: click.Context, _parameter: click.Parameter, path: str | None) -> None:
    if path is None:
        return
    try:
        with open(path, "rb") as file:
            values = tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise click.ClickException(f"--config {path}: {error}") from error
    flat = {k: v for k, v in values.items() if not isinstance(v, dict)} | values.get(context.info_name, {})
    flat = {k.replace("-", "_"): v for k, v in flat.items()}
    names = {p.name: p for p in context.command.params if p.name != "config"}
    spoken = {RENAMED.get(name, name): name for name in names}
    unknown = sorted(set(flat) - set(spoken))
    if unknown:
        raise click.ClickException(f"--config {path}: unknown option {', '.join(unknown)}; see --help")
    for key, value in flat.items():
        several = getattr(names[spoken[key]], "multiple", False)
        if isinstance(value, list) and not several:
            raise click.ClickException(f"--config {path}: --{key.replace('_', '-')} takes one value, not a list")
        # As text, like the command line: click would make 2 of bins = 2.5.
        flat[key] = [str(v) for v in (value if isinstance(value, list) else [value])] if several else str(value)
    context.default_map = {**(context.default_map or {}), **{spoken[key]: value for key, value in flat.items()}}


def _use_preset(context: click.Context, _parameter: click.Parameter, name: str | None) -> None:
    if name is not None:
        context.default_map = {**PRESETS[name], **(context.default_map or {})}
