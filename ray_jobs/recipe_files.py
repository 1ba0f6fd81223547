"""Recipes as TOML files: training settings by which a result can be named, those in `recipes/` and anyone's own.

Top-level fields are those of `adq.recipe.Recipe`, for every network; a table overrides them for the network of its name, and
for all whose names begin with it: [convnet] is for convnet-d3-w32, [vit] for vit_b_16. Of several such tables the one with the
longest name counts, alone.
"""

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import get_args, get_type_hints

from adq.models import CONVNET, NARROW_RESNET, OWN, torchvision_names
from adq.recipe import Recipe

FOLDER = Path(__file__).with_name("recipes")
KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def names() -> list[str]:
    """The recipes that come along."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


@dataclass(frozen=True)
class RecipeFile:
    """The settings of one file; `tables` by the beginning of a network's name."""

    path: Path
    shared: dict
    tables: dict[str, dict]

    def recipe(self, arch: str) -> Recipe:
        """The settings of a network. Raises ValueError, naming file and table, where they are none."""
        found = max((name for name in self.tables if arch.startswith(name)), key=len, default=None)
        return self._with(found)

    def _with(self, table: str | None) -> Recipe:
        own = {} if table is None else self.tables[table]
        # A table that says how long to train says it whole.
        left = {"epochs", "steps"} if {"epochs", "steps"} & own.keys() else set()
        try:
            return Recipe(**{name: value for name, value in self.shared.items() if name not in left} | own)
        except ValueError as error:
            raise ValueError(f"{_place(self.path, table)}: {error}") from error


def read(name: str) -> RecipeFile:
    """A recipe file, checked in full.

    Args:
        name: of `names()`, or the path of a TOML file.

    Raises:
        ValueError: names the file, and the table and field that are unknown or not what they should be.
    """
    is_path = name.endswith(".toml") or "/" in name
    path = Path(name) if is_path else FOLDER / f"{name}.toml"
    if not is_path and name not in names():
        raise ValueError(f"--recipe {name}: expected a TOML file, or one of {', '.join(names())}")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"--recipe {name}: {error}") from error
    tables = {key: value for key, value in values.items() if isinstance(value, dict)}
    shared = _checked(path, None, {key: value for key, value in values.items() if key not in tables})
    for table in tables:
        if not _is_known(table):
            raise ValueError(
                f"{path}: [{table}]: no network's name begins so; known: {', '.join(OWN)}, or torchvision's"
            )
    file = RecipeFile(path, shared, {table: _checked(path, table, settings) for table, settings in tables.items()})
    for table in (None, *tables):
        file._with(table)
    return file


def _checked(path: Path, table: str | None, settings: dict) -> dict:
    hints = get_type_hints(Recipe)
    checked = {}
    for name, value in settings.items():
        if name not in hints:
            known = ", ".join(field.name for field in fields(Recipe))
            raise ValueError(f"{_place(path, table)}: {name}: no such field; known: {known}")
        kind = next(kind for kind in (*get_args(hints[name]), hints[name]) if kind in KINDS)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise ValueError(f"{_place(path, table)}: {name}: expected {KINDS[kind]}, not {value!r}")
        checked[name] = value
    return checked


def _place(path: Path, table: str | None) -> str:
    return f"{path}" if table is None else f"{path}: [{table}]"


def _is_known(table: str) -> bool:
    # torchvision takes seconds to load: it is asked last.
    if CONVNET.fullmatch(table) or NARROW_RESNET.fullmatch(table) or any(name.startswith(table) for name in OWN):
        return True
    return any(name.startswith(table) for name in torchvision_names())
