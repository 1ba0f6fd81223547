"""The sets of --sets, which no method of a grid selects: distilled ones, or somebody's selections."""

from collections.abc import Sequence
from dataclasses import replace

from palette.export import SOFT
from ray_jobs import ingest
from ray_jobs.cluster import check_paths
from ray_jobs.comparison import Outcome, as_many
from ray_jobs.grid import Grid
from ray_jobs.held_out import check_test
from ray_jobs.ingest import Index
from ray_jobs.job import Job
from ray_jobs.members import member_bytes
from ray_jobs.payload import payload_bytes, tar_bytes


def further_set(job: Job, name: str, place: str, grid: Grid, source: Index, test: Index) -> tuple[Index, list[Outcome]]:
    """A set that no method of the grid selects, and its outcomes; the payload of a distilled one is its container's.

    Raises:
        ValueError: its classes are not those of the test images.
    """
    check_paths(sets=place)
    index = ingest.run(job, replace(grid.data, data=(place,)), False, name)
    check_test(name, index, test)
    share, payload, tars = index.images / source.images, payload_bytes(index), tar_bytes(index)
    content = index.manifest.content
    return index, [
        Outcome(name, share, seed, 0, index.images, payload, tars, 0.0, 0.0, 0.0, content) for seed in grid.seeds
    ]


def sets_named(
    job: Job, name: str, places: Sequence[str], grid: Grid, source: Index, test: Index
) -> list[list[tuple[Index, list[Outcome]]]]:
    """The further sets of one name, by size, each with the outcomes of its seeds: of n of one size, seed s has number s modulo n.

    Raises:
        ValueError: as `further_set`; there are more of one size than seeds.
    """
    groups: list[list[tuple[Index, list[Outcome]]]] = []
    found = [further_set(job, name, place, grid, source, test) for place in places]
    for one in sorted(found, key=lambda one: one[0].images):
        if groups and as_many(one[0].images, groups[-1][0][0].images):
            groups[-1].append(one)
        else:
            groups.append([one])
    for group in groups:
        images, keep, count = group[0][0].images, group[0][1][0].keep, len(group)
        if count > len(grid.seeds):
            raise ValueError(
                f"--sets {name}=...: {count} sets of {images:,} images, each for seeds of its own, and --seeds {len(grid.seeds)}"
            )
        for number, (index, each) in enumerate(group):
            mine = [replace(outcome, keep=keep) for outcome in each if outcome.seed % count == number]
            group[number] = index, mine
    return groups


def warn_of_soft_labels(name: str, index: Index) -> None:
    """Where a set that is trained on hard labels has soft ones."""
    if member_bytes(index, SOFT).any():
        print(
            f"warning: {name} has soft labels, which are left unused; compare --labels soft, or both, trains on them",
            flush=True,
        )
