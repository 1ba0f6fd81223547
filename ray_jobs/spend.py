"""compress --budget: as many images as fit into so many bytes, spent as asked, or as a frontier says that it pays."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from adq.shards import absolute
from ray_jobs import ingest, write
from ray_jobs.budget import parse_bytes
from ray_jobs.cluster import probe
from ray_jobs.compress import Compression
from ray_jobs.copies import Copies
from ray_jobs.encode import Storage
from ray_jobs.evaluate import Evaluation
from ray_jobs.frontier_report import ALL, RULE, RULE_FIELDS, spending
from ray_jobs.grid import Comparison, Grid, Selected, Variant
from ray_jobs.job import opened
from ray_jobs.options import Compute, Place, option
from ray_jobs.selections import subset_of
from ray_jobs.store import Store


@dataclass(frozen=True)
class Spend:
    """A budget in the place of --keep."""

    budget: str | None = option(
        None, "Payload of the result, in the place of --keep: as many images as fit, in their encoding.", metavar="3MB"
    )
    frontier: str | None = option(
        None,
        "With --budget: method and encoding are the best ones there, the --out folder of frontier.",
        metavar="PLACE",
    )

    def __post_init__(self):
        if self.frontier and not self.budget:
            raise ValueError("--frontier says how to spend a --budget: give that, too")
        if self.budget:
            parse_bytes(self.budget)


def best_spending(rule: Sequence[dict], budget: int) -> tuple[str, str, float]:
    """Method, encoding and accuracy of the best spending at a budget.

    Accuracies are interpolated along the logarithm of the budget. Above its range, a spending is worth what it was at its
    largest budget; below, nothing is known of it. Where everything fitted, that belongs to `random`. Of several networks the mean
    counts; sets that were made elsewhere are left out.

    Raises:
        ValueError: no spending there.
    """
    lines: dict[tuple[str, str], dict[int, list[float]]] = {}
    for point in rule:
        if point["encoding"]:
            method = "random" if point["method"] == ALL else point["method"]
            lines.setdefault((method, point["encoding"]), {}).setdefault(point["budget"], []).append(point["mean"])
    if not lines:
        raise ValueError("the frontier has no spending that could be repeated")
    budget = max(budget, min(min(line) for line in lines.values()))
    reached = {}
    for name, line in lines.items():
        known = sorted(line)
        if known[0] <= budget:
            reached[name] = float(np.interp(math.log(budget), np.log(known), [np.mean(line[at]) for at in known]))
    (method, encoding), mean = max(reached.items(), key=lambda item: (item[1], item[0]))
    return method, encoding, mean


def run(wanted: Compression, spend: Spend, storage: Storage, compute: Compute, place: Place) -> None:
    """The command.

    Raises:
        ValueError: not even one image a class fits; no such frontier.
    """
    budget, selection, name = parse_bytes(spend.budget), wanted.selection, wanted.selection.method
    if spend.frontier:
        name, storage = _learned(spend.frontier, budget, storage)
    variant = Variant.of(name, selection)
    identity = ["spend", asdict(spend), asdict(storage), wanted.identity()]
    with opened(place, compute, f"{variant.name} as {storage.encode} in {spend.budget}", identity) as job:
        write.check(wanted.out)
        probe(job.cluster, [absolute(wanted.out)])
        index = ingest.run(job, wanted.data)
        job.run.params({"budget": budget, "method": variant.name, "encode": storage.encode, "seed": selection.seed})
        grid = Grid(
            Comparison(extractors=1), Evaluation(seeds=1), wanted.data, selection, wanted.backbone, (), wanted.out
        )
        copies = Copies(job, index, wanted.backbone)
        rows, payload = copies.fitting(Selected(job, index, grid), variant, storage, budget, selection.seed)
        copy = copies.of(storage)
        written = write.run(job, copy, subset_of(job, copy, rows.positions), wanted.out, selection.seed)
        job.run.metrics({"images": rows.images, "payload_bytes": payload, "tar_bytes": written.summary["tar_bytes"]})
        job.run.dataset("subset", absolute(wanted.out), written.content, "subset", rows.images)
        job.report(
            f"{spending(variant.name, storage.encode)}: {rows.images:,} of {index.images:,} images\n"
            f"payload  {payload:,} of {budget:,} bytes, {written.summary['tar_bytes'] / 1e6:.2f} MB as tars\n"
            f"shards   {absolute(wanted.out)}"
        )


def _learned(frontier: str, budget: int, storage: Storage) -> tuple[str, Storage]:
    store = Store.at(frontier)
    if store.size(RULE) is None:
        raise ValueError(f"--frontier {store.root}: no {RULE} there; give the --out folder of `frontier`")
    rule = json.loads(store.read(RULE))
    if not isinstance(rule, list) or not all(isinstance(point, dict) and {*RULE_FIELDS} <= {*point} for point in rule):
        raise ValueError(f"{store.path(RULE)}: is not what `frontier` writes")
    method, encoding, mean = best_spending(rule, budget)
    print(f"frontier      {spending(method, encoding)}: about {100 * mean:.1f} % there", flush=True)
    return method, replace(storage, encode=encoding)
