"""compress --budget: as many images as fit into so many bytes, spent as asked, or as a frontier says that it pays."""

from collections.abc import Collection
from dataclasses import asdict, dataclass, fields, replace

from adq.shards import absolute
from ray_jobs import ingest, write
from ray_jobs.budget import as_budget, parse_bytes
from ray_jobs.cluster import probe
from ray_jobs.compress import Compression
from ray_jobs.copies import Copies
from ray_jobs.evaluate import Evaluation
from ray_jobs.frontier_report import spending
from ray_jobs.frontier_rule import read_rule
from ray_jobs.grid import Comparison, Grid, Selected, Variant
from ray_jobs.job import opened
from ray_jobs.options import Compute, Place, option
from ray_jobs.selections import subset_of


@dataclass(frozen=True)
class Spend:
    """A budget in the place of --keep."""

    budget: str | None = option(
        None, "Payload of the result, in the place of --keep: as many images as fit, in their encoding.", metavar="3MB"
    )
    frontier: str | None = option(
        None,
        "With --budget: the best method and encoding there, the --out folder of frontier, and its settings unless you give them.",
        metavar="PLACE",
    )

    def __post_init__(self):
        if self.frontier and not self.budget:
            raise ValueError("--frontier says how to spend a --budget: give that, too")
        if self.budget:
            parse_bytes(self.budget)


def run(wanted: Compression, spend: Spend, compute: Compute, place: Place, given: Collection[str] = ()) -> None:
    """The command.

    Args:
        given: options that the user gave: they win over those of the frontier.

    Raises:
        ValueError: not even one image a class fits; no such frontier; options that contradict each other.
    """
    check_given(spend, given)
    budget, variant = parse_bytes(spend.budget), Variant(wanted.selection.method, wanted.selection)
    spent = budget
    if spend.frontier:
        wanted, variant, spent = learned(wanted, spend.frontier, budget, given)
    elif not {"method", "encode"} & set(given):
        print(
            f"warning: nothing was learned, so {spend.budget} are spent on {spending(variant.name, wanted.storage.encode)}, "
            "among the worst for few bytes; --frontier, or --method support-points with an --encode like webp:20, spends them well",
            flush=True,
        )
    storage, selection = wanted.storage, wanted.selection
    identity = ["spend", asdict(spend) | ({"spent": spent} if spent < budget else {}), wanted.identity()]
    with opened(place, compute, f"{variant.name} as {storage.encode} in {spend.budget}", identity) as job:
        write.check(wanted.out)
        probe(job.cluster, [absolute(wanted.out)])
        index = ingest.run(job, wanted.data)
        job.run.params({"budget": budget, "method": variant.name, "encode": storage.encode, "seed": selection.seed})
        grid = Grid(
            Comparison(extractors=1), Evaluation(seeds=1), wanted.data, selection, wanted.backbone, (), wanted.out
        )
        copies = Copies(job, index, wanted.backbone, selection.seed, wanted.data.skip_corrupt)
        rows, payload, _ = copies.fitting(Selected(job, index, grid), variant, storage, spent, selection.seed)
        copy = copies.of(storage)
        written = write.run(job, copy, subset_of(job, copy, rows.positions), wanted.out, selection.seed)
        job.run.metrics({"images": rows.images, "payload_bytes": payload, "tar_bytes": written.summary["tar_bytes"]})
        job.run.dataset("subset", absolute(wanted.out), written.content, "subset", rows.images)
        left = f" ({budget - spent:,} are left, as more reached less)" if spent < budget else ""
        job.report(
            f"{spending(variant.name, storage.encode)}: {rows.images:,} of {index.images:,} images\n"
            f"payload  {payload:,} of {budget:,} bytes{left}, {written.summary['tar_bytes'] / 1e6:.2f} MB as tars\n"
            f"shards   {absolute(wanted.out)}"
        )


def check_given(spend: Spend, given: Collection[str]) -> None:
    """Raises ValueError for options that a budget, or a frontier, would overrule."""
    if "keep" in given:
        raise ValueError("--keep: a --budget says how many images are kept; give one of the two")
    if spend.frontier and (chosen := [f"--{name}" for name in ("method", "encode") if name in given]):
        raise ValueError(f"{' and '.join(chosen)}: --frontier chooses method and encoding; leave out one or the other")


def learned(
    wanted: Compression, frontier: str, budget: int, given: Collection[str]
) -> tuple[Compression, Variant, int]:
    """The command with the best encoding of a frontier and the settings that it was measured with, the best method, and what
    of the budget is best spent.
    """
    rule = read_rule(frontier)
    choice = rule.spend(budget)
    method, encoding = choice.method, choice.encoding
    print(f"frontier      {spending(method, encoding)}: about {100 * choice.mean:.1f} % there", flush=True)
    if choice.budget < budget:
        less, whole = as_budget(choice.budget), as_budget(budget)
        print(f"              in {less}, which is all that is spent: nothing reached as much in {whole}", flush=True)
    if choice.set:
        print(
            f"              {choice.set} of --sets reached {100 * choice.set_mean:.1f} %, and is left out: it was made elsewhere; "
            "use its own shards",
            flush=True,
        )
    storage, selection, backbone, differ = rule.settle(wanted.storage, wanted.selection, wanted.backbone, given)
    variant = Variant.of(method, selection)
    own = {f.name for f in fields(selection) if getattr(variant.selection, f.name) != getattr(selection, f.name)}
    differ += [f"--{name} (there {method})" for name in sorted(own & set(given))]
    if differ:
        print(f"warning: not as the frontier was measured, or overruled by it: {'; '.join(differ)}", flush=True)
    wanted = replace(wanted, storage=replace(storage, encode=encoding), selection=selection, backbone=backbone)
    return wanted, variant, choice.budget
