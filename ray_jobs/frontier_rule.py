"""frontier.json: what a frontier found and how it was measured; what `compress --budget --frontier` learns from it."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from adq.controls import is_control
from adq.shards import absolute, file_info
from ray_jobs.encode import Storage
from ray_jobs.options import Backbone, Selection
from ray_jobs.store import Store, canonical_json

if TYPE_CHECKING:
    from ray_jobs.frontier_report import Point

ALL = "all images"  # the method where nothing is left to choose
RULE = "frontier.json"
POINT = ("arch", "budget", "method", "encoding", "images", "payload", "mean", "seeds")
OF_SELECTION = tuple(f.name for f in fields(Selection) if f.name not in ("method", "keep", "permutation", "seed"))
OF_BACKBONE = tuple(f.name for f in fields(Backbone) if f.name != "train_workers")
SETTINGS = ("saliency", *OF_SELECTION, *OF_BACKBONE)
# Options that are younger than some of the files: these were measured with what is their default now.
YOUNGER = {f.name: f.default for f in fields(Selection) if f.name in ("beta", "neighbours", "gamma_reverse")}


class Choice(NamedTuple):
    """What a budget is spent on."""

    method: str
    encoding: str
    mean: float  # share of test images that it is expected to reach
    budget: int  # what is spent: the wanted budget, or a smaller one where more was reached
    set: str = ""  # of --sets, that reached more still in the wanted budget, and cannot be repeated
    set_mean: float = math.nan


@dataclass(frozen=True)
class Rule:
    """What spendings reached, and under which settings: options of `frontier` and of `compress`, by name."""

    settings: Mapping[str, object]
    points: Sequence[Mapping]

    def spend(self, wanted: int) -> Choice:
        """The best spending at a budget, or, where that reached more, at a smaller one that was measured.

        Accuracies are interpolated along the logarithm of the budget. Above its range, a spending is worth what it was at its
        largest budget; below, nothing is known of it. Where everything fitted, that belongs to `random`. Of several networks the
        mean counts; ADQ's controls are left out, and so are sets that were made elsewhere, the best of which is named.

        Raises:
            ValueError: no spending there.
        """
        lines: dict[tuple[str, str], dict[int, list[float]]] = {}
        sets: dict[str, list[float]] = {}
        for point in self.points:
            if is_control(point["method"]):
                continue
            if not point["encoding"]:
                if point["payload"] <= wanted:
                    sets.setdefault(point["method"], []).append(point["mean"])
            else:
                method = "random" if point["method"] == ALL else point["method"]
                lines.setdefault((method, point["encoding"]), {}).setdefault(point["budget"], []).append(point["mean"])
        if not lines:
            raise ValueError("the frontier has no spending that could be repeated")
        budget = max(wanted, min(min(line) for line in lines.values()))
        reached = {}
        for name, line in lines.items():
            known = sorted(line)
            means = [float(np.mean(line[at])) for at in known]
            reached |= {(at, *name): mean for at, mean in zip(known, means, strict=True) if at < budget}
            if known[0] <= budget:
                reached[budget, *name] = float(np.interp(math.log(budget), np.log(known), means))
        (spent, method, encoding), mean = max(reached.items(), key=lambda item: (item[1], item[0]))
        choice = Choice(method, encoding, mean, min(spent, wanted))
        best = max(sets, key=lambda name: np.mean(sets[name]), default="")
        if best and (set_mean := float(np.mean(sets[best]))) > mean:
            return choice._replace(set=best, set_mean=set_mean)
        return choice

    def settle(
        self, storage: Storage, selection: Selection, backbone: Backbone, given: Collection[str]
    ) -> tuple[Storage, Selection, Backbone, list[str]]:
        """Options as they were when this was measured, but for those that the user gave; and where these differ, in words."""
        own = settings(storage.saliency, selection, backbone)
        kept = [name for name in SETTINGS if name in given]
        differ = [
            f"--{name.replace('_', '-')} {own[name]} (there {self.settings[name]})"
            for name in kept
            if own[name] != self.settings[name]
        ]
        taken = {name: value for name, value in self.settings.items() if name not in kept}

        def of(names: Sequence[str]) -> dict:
            return {name: taken[name] for name in names if name in taken}

        return (
            replace(storage, **of(["saliency"])),
            replace(selection, **of(OF_SELECTION)),
            replace(backbone, **of(OF_BACKBONE)),
            differ,
        )


def settings(saliency: str, selection: Selection, backbone: Backbone) -> dict[str, object]:
    """What is needed to repeat a spending, besides method, encoding and budget; files by their absolute places."""
    every = {"saliency": saliency} | asdict(selection) | asdict(backbone)
    found = {name: every[name] for name in SETTINGS}
    for name in ("weights", "embeddings"):
        if found[name] and file_info(absolute(found[name])).is_file:
            found[name] = absolute(found[name])
    return found


def rule_bytes(measured: Mapping[str, object], found: Sequence["Point"]) -> bytes:
    return canonical_json(
        {"settings": measured, "points": [{name: getattr(one, name) for name in POINT} for one in found]}
    )


def read_rule(place: str) -> Rule:
    """What `frontier` wrote to a folder. Raises ValueError: nothing, or something else."""
    store = Store.at(place)
    if store.size(RULE) is None:
        raise ValueError(f"--frontier {store.root}: no {RULE} there; give the --out folder of `frontier`")
    try:
        told = json.loads(store.read(RULE))
        rule = Rule(YOUNGER | dict(told["settings"]), told["points"])
        whole = {*SETTINGS} == {*rule.settings} and all({*POINT} <= {*point} for point in rule.points)
    except (ValueError, TypeError, KeyError):
        whole = False
    if not whole:
        raise ValueError(f"{store.path(RULE)}: is not what this version of `frontier` writes; run it again")
    return rule
