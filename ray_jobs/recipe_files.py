"""Recipes as TOML files: training settings by which a result can be named, those in `recipes/` and anyone's own.

Top-level fields are those of `adq.recipe.Recipe`, for every network; a table overrides them for the network of its name, and
for all whose names begin with it: [convnet] is for convnet-d3-w32, [vit] for vit_b_16. Of several such tables the one with the
longest name counts, alone.

`base` names another recipe, one of ours or a path beside this file: its fields hold where the file is silent, table by table. How
long to train is said whole: where a file or a table says epochs or steps, nothing below it counts, of the base's tables neither.
"""

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import get_args, get_type_hints

from adq.models import CONVNET, NARROW_RESNET, OWN, torchvision_names
from adq.recipe import Recipe

FOLDER = Path(__file__).with_name("recipes")
LENGTH = {"epochs", "steps"}
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
        try:
            return Recipe(**_yielding(self.shared, own) | own)
        except ValueError as error:
            raise ValueError(f"{_place(self.path, table)}: {error}") from error


def read(name: str) -> RecipeFile:
    """A recipe file, checked in full.

    Args:
        name: of `names()`, or the path of a TOML file.

    Raises:
        ValueError: names the file, and the table and field that are unknown or not what they should be.
    """
    return _read(name, Path(), "--recipe ", ())


def _read(name: str, folder: Path, asked: str, above: tuple[Path, ...]) -> RecipeFile:
    # `asked` begins an error about the name; `above` are the files whose base this one is, directly or not.
    is_path = name.endswith(".toml") or "/" in name
    path = folder / name if is_path else FOLDER / f"{name}.toml"
    if not is_path and name not in names():
        raise ValueError(f"{asked}{name}: expected a TOML file, or one of {', '.join(names())}")
    if path.resolve() in above:
        raise ValueError(f"{asked}{name}: a recipe cannot be based on itself")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{asked}{name}: {error}") from error
    base = RecipeFile(path, {}, {})
    if "base" in values:
        if not isinstance(named := values.pop("base"), str):
            raise ValueError(f"{path}: base: expected {KINDS[str]}, not {named!r}")
        base = _read(named, path.parent, f"{path}: base: ", (*above, path.resolve()))
    tables = {key: value for key, value in values.items() if isinstance(value, dict)}
    shared = _checked(path, None, {key: value for key, value in values.items() if key not in tables})
    for table in tables:
        if not _is_known(table):
            raise ValueError(
                f"{path}: [{table}]: no network's name begins so; known: {', '.join(OWN)}, or torchvision's"
            )
    merged = {table: _yielding(settings, shared) for table, settings in base.tables.items()}
    for table in tables:
        own = _checked(path, table, tables[table])
        merged[table] = _yielding(merged.get(table, {}), own) | own
    file = RecipeFile(path, _yielding(base.shared, shared) | shared, merged)
    for table in (None, *merged):
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


def _yielding(settings: dict, above: dict) -> dict:
    # `settings` without how long to train, where what goes before them says it.
    return {name: value for name, value in settings.items() if not (name in LENGTH and LENGTH & above.keys())}


def _place(path: Path, table: str | None) -> str:
    return f"{path}" if table is None else f"{path}: [{table}]"


def _is_known(table: str) -> bool:
    # torchvision takes seconds to load: it is asked last.
    if CONVNET.fullmatch(table) or NARROW_RESNET.fullmatch(table) or any(name.startswith(table) for name in OWN):
        return True
    return any(name.startswith(table) for name in torchvision_names())
