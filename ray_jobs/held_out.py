"""What must hold of the images that networks are tested with: the same classes, other images, and all of them can be decoded."""

from typing import TYPE_CHECKING

import pyarrow.compute as pc

from adq.extractor import input_transform
from ray_jobs import decode
from ray_jobs.classifier import input_side
from ray_jobs.ingest import Index
from ray_jobs.loading import how_to_hold
from ray_jobs.members import image_digests

if TYPE_CHECKING:
    from ray_jobs.evaluate import Evaluation
    from ray_jobs.job import Job

SHOWN = 5
SHARED = 0.001  # of the test images: data sets have some that occur in both parts


def check_test(name: str, index: Index, test: Index, warn: bool = True) -> None:
    """Warns of classes that a training set has no images of, and of test images that are in it.

    Args:
        warn: of classes without images, which soft labels may teach all the same.

    Raises:
        ValueError: the classes differ.
    """
    if index.classes != test.classes:
        differ = [c for c in (*index.classes, *test.classes) if (c in index.classes) != (c in test.classes)]
        raise ValueError(
            f"the classes of {index.data.root} ({len(index.classes)}) are not those of {test.data.root} ({len(test.classes)}), "
            f"in this order; {'they differ in ' + ', '.join(differ[:SHOWN]) if differ else 'the order differs'}; see --classes"
        )
    counts = index.manifest.summary["class_counts"]
    missing = [c for c, count in zip(index.classes, counts, strict=True) if not count]
    if warn and missing:
        print(
            f"warning: {name} has no images of {', '.join(missing[:SHOWN])}; they cannot be learnt from it", flush=True
        )
    shared = pc.sum(pc.is_in(image_digests(test), value_set=image_digests(index))).as_py()
    if shared > SHARED * test.images:
        print(
            f"warning: {shared:,} of the {test.images:,} test images are in {name}, byte for byte: its accuracy is no held-out one",
            flush=True,
        )


def check_decodable(job: "Job", test: Index, options: "Evaluation", first: bool = True) -> None:
    """Try every test image before anything is trained, where a worker would find a broken one after its first training.

    Args:
        first: nothing else is done before workers open the images: what they decode before they train need not be tried.

    Raises:
        ValueError: some cannot be decoded; names the first ones and why.
    """
    side = options.image_size or input_side(test.side)
    transforms = [input_transform(arch, side) for arch in options.archs(job.device)]
    if first and all(how_to_hold(test, transform, options.memory) == "decoded" for transform in transforms):
        return  # they are decoded before a worker trains
    found = decode.run(job, test)
    if not found.summary["undecodable"]:
        return
    broken = decode.errors(found.stage, found.parts)
    lines = [f"{test.data.root}/{shard}: key {key!r} ({why})" for shard, key, why in broken[:SHOWN]]
    more = f"\n  and {len(broken) - SHOWN:,} more" if len(broken) > SHOWN else ""
    raise ValueError(
        f"{len(broken):,} of the {test.images:,} test images cannot be decoded; mend them, or leave them out of the shards:\n  "
        + "\n  ".join(lines)
        + more
    )
