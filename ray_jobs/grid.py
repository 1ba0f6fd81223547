"""The grid of a comparison: methods with their settings, keep ratios, networks, seeds; and the selections of it."""

import itertools
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property

import pyarrow.compute as pc

from adq.controls import CONTROLS, PERMUTATIONS, is_control
from adq.selection import BY_IMPORTANCE, needs
from ray_jobs import bins, sample
from ray_jobs.budget import images_that_fit
from ray_jobs.comparison import BASELINES, Outcome
from ray_jobs.evaluate import Evaluation
from ray_jobs.ingest import Index
from ray_jobs.job import Job
from ray_jobs.loading import Rows
from ray_jobs.members import image_members
from ray_jobs.options import Backbone, Data, Selection, option
from ray_jobs.payload import payload_bytes, tar_bytes
from ray_jobs.seen import Sources, trained_epochs
from ray_jobs.store import canonical_json, sha256


@dataclass(frozen=True)
class Comparison:
    """The grid."""

    methods: str = option(
        "random,dq,adq", "Methods; settings of one after colons: adq:alpha=1, dq:scope=global.", metavar="NAME,NAME:SETTING=VALUE"
    )  # fmt: skip
    keep: str = option("0.1", "Shares of the images that are kept.", metavar="SHARE,SHARE")
    sets: tuple[str, ...] = option(
        (),
        "A set of its own beside the methods, such as a distilled one; --labels is for these alone. Several of one name and size: "
        "seed s has number s modulo so many.",
        metavar="NAME=SHARDS",
    )
    without_controls: bool = option(
        False,
        "Leave out what is not named: random, which belongs to every comparison; dq, adq-permuted (in fewer than five seeds, "
        "several permutations each), adq-reversed and adq-random-bins, which belong to every adq.",
    )
    extractors: int = option(
        0,
        "Extractors, and short trainings that methods watch; seed s uses number s modulo this. 0: number s, but one extractor "
        "where none is trained here.",
    )
    first_seed: int = option(0, "The first of the --seeds: fresh ones for a run that is to confirm another.")
    gpus_per_training: float = option(0.0, "Share of a GPU for a training; 0: a quarter below 96 px, else a whole one.")
    estimate: bool = option(False, "Say what features, trainings and encodings will take, and stop.")

    def __post_init__(self):
        for name in ("extractors", "first_seed", "gpus_per_training"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected 0 or more")

    def shares(self) -> list[float]:
        try:
            shares = sorted({float(share) for share in self.keep.split(",") if share.strip()})
        except ValueError as error:
            raise ValueError(f"--keep {self.keep}: expected shares such as 0.01,0.05,0.1") from error
        if not shares or len({f"{share:g}" for share in shares}) < len(shares):
            raise ValueError(
                f"--keep {self.keep}: expected at least one share, and none that differ in the seventh digit alone"
            )
        return shares

    def variants(self, base: Selection, seeds: int = PERMUTATIONS) -> list["Variant"]:
        """What is compared; in fewer seeds than PERMUTATIONS, so many permutations of each that there are as many in all."""
        named = self._named(base)
        taken = {one.name for one in named}
        return [own for one in named for own in (one, *one.permutations(-(-PERMUTATIONS // seeds), taken))]

    def _named(self, base: Selection) -> list["Variant"]:
        names = [name.strip() for name in self.methods.split(",") if name.strip()]
        found = [Variant.of(name, base) for name in dict.fromkeys(names)]
        if not found:
            raise ValueError("--methods: give at least one")
        if self.without_controls:
            return found
        # Each with the settings of its own adq.
        settings = [one.name.partition(":") for one in found if one.selection.method == "adq"]
        controls = [name + colon + rest for _, colon, rest in settings for name in CONTROLS]
        baselines = BASELINES if settings else BASELINES[:1]
        return [
            *(Variant.of(name, base) for name in baselines if name not in names),
            *found,
            *(Variant.of(name, base) for name in controls if name not in names),
        ]


@dataclass(frozen=True)
class Variant:
    """A method with its settings, under the name that the user gave it."""

    name: str
    selection: Selection
    row: str = ""  # of the table: several permutations of one importance share it

    @property
    def title(self) -> str:
        return self.row or self.name

    @property
    def literal(self) -> bool:
        """Whether it keeps as many images as eq. 10 as printed gives, whatever the keep ratio."""
        return self.selection.method in BY_IMPORTANCE and self.selection.allocation == "literal"

    @classmethod
    def of(cls, name: str, base: Selection) -> "Variant":
        method, *settings = name.split(":")
        Selection(method=method)  # raises for an unknown one
        known = sample.reads(method)
        kinds = {f.name: type(f.default) for f in fields(Selection) if f.name in known}
        given: dict[str, object] = {}
        for setting in settings:
            field, _, value = setting.partition("=")
            field = field.strip().replace("-", "_")
            if field not in kinds:
                raise ValueError(
                    f"--methods {name}: {method} has no setting {field!r}; known: {', '.join(known) or 'none'}"
                )
            try:
                given[field] = kinds[field](value)
            except ValueError as error:
                raise ValueError(f"--methods {name}: {field} is {value!r}, expected {kinds[field].__name__}") from error
        return cls(name, replace(base, method=method, **given))

    def permutations(self, count: int, taken: Collection[str]) -> list["Variant"]:
        """Of a permuted control, further ones, so many with itself, that go into its row; not those whose names are taken."""
        if self.selection.method != "adq-permuted" or "permutation=" in self.name:
            return []
        names = (f"{self.name}:permutation={n}" for n in itertools.count(1))
        free = (name for name in names if name not in taken)
        return [replace(self.of(name, self.selection), row=self.name) for name in itertools.islice(free, count - 1)]


@dataclass(frozen=True)
class Grid:
    """Everything that a command asks for."""

    comparison: Comparison
    evaluation: Evaluation
    data: Data
    selection: Selection
    backbone: Backbone
    test: tuple[str, ...]
    out: str

    def identity(self) -> list:
        """What makes this another comparison."""
        parts = (self.comparison, self.evaluation, self.data, self.selection, self.backbone)
        return ["compare", *map(asdict, parts), self.test]

    @property
    def seeds(self) -> range:
        return range(self.comparison.first_seed, self.comparison.first_seed + self.evaluation.seeds)

    @cached_property
    def variants(self) -> list[Variant]:
        return self.comparison.variants(self.selection, self.evaluation.seeds)

    @cached_property
    def named_sets(self) -> dict[str, list[str]]:
        """Where the shards of the further sets lie, by their names."""
        given = self.comparison.sets
        found: dict[str, list[str]] = {}
        for name, _, place in (entry.partition("=") for entry in given):
            found.setdefault(name, []).append(place)
        taken = {variant.name for variant in self.variants}
        if controls := [name for name in found if is_control(name)]:
            raise ValueError(f"--sets {controls[0]}=...: is the name of a control of ADQ; give it another")
        if len(set(given)) < len(given) or not all(found) or not all(map(all, found.values())) or taken & set(found):
            raise ValueError(f"--sets {' '.join(given)}: expected NAME=SHARDS, each once, and names that no method has")
        return found

    def check_methods(self, index: Index) -> None:
        """What can be known of methods before features are extracted.

        Raises:
            ValueError: there are too few images for their --bins; --embeddings, which they look at, are not of these images.
        """
        selections = [variant.selection for variant in self.variants]
        needed = [needs(selection.method) for selection in selections]
        if self.backbone.embeddings and any("embeddings" in each for each in needed):
            bins.own_embeddings(self.backbone.embeddings, index)
        for selection, each in zip(selections, needed, strict=True):
            if each & {"bins", "scores"}:
                bins.check(index, selection)

    def extractor(self, seed: int, index: Index) -> int:
        """The number of a seed's extractor, counted from `Backbone.feature_seed`."""
        trained = trained_epochs(self.backbone, index) is not None and not self.backbone.embeddings
        return self.watched(seed) if trained or self.comparison.extractors else 0

    def watched(self, seed: int) -> int:
        """The number of the short training that methods watch with a seed, counted from `Backbone.feature_seed`."""
        return seed % self.comparison.extractors if self.comparison.extractors else seed


class Selected:
    """The selections of a grid, as rows of the index, and what it cost to make them."""

    def __init__(self, job: Job, index: Index, grid: Grid):
        self.job, self.index, self.grid = job, index, grid
        self._sources: dict[int, Sources] = {}
        self._held: dict = {}
        self.image_bytes = image_members(index).image_bytes
        self.keys = index.table()["key"].combine_chunks()

    def _of_seed(self, seed: int) -> Sources:
        number, backbone = self.grid.extractor(seed, self.index), self.grid.backbone
        if number not in self._sources:
            own = replace(backbone, feature_seed=backbone.feature_seed + number)
            self._sources[number] = Sources(self.job, self.index, own, self.grid.data.skip_corrupt, self._held)
        return self._sources[number]

    def release(self) -> None:
        """Forget the embeddings that were read last: they are not needed while networks are trained."""
        self._held.clear()

    def of(self, variant: Variant, keep: float, seed: int, warn: bool = False) -> tuple[Rows, Outcome]:
        sources = self._of_seed(seed)
        selection = replace(variant.selection, keep=keep, seed=seed)
        watched = self.grid.backbone.feature_seed + self.grid.watched(seed)
        manifest = sample.run(self.job, self.index, sources.seen(selection, watched), selection, quiet=True)
        if warn and not manifest.summary["smallest_class"]:
            print(
                f"warning: {variant.name} keep {keep:g}: there are classes without an image; raise --keep", flush=True
            )
        chosen = manifest.table("subset", ["key"])["key"].combine_chunks()
        positions = pc.index_in(chosen, value_set=self.keys).to_numpy()
        rows = Rows(positions, sha256(canonical_json(chosen.to_pylist())), int(self.image_bytes[positions].sum()))
        spent = sources.seconds(selection, watched)
        spent["sample"] = float(manifest.stage.run_facts().get("seconds", 0.0))
        return rows, Outcome(
            variant.title, keep, seed, sources.backbone.feature_seed, len(positions), payload_bytes(self.index, positions),
            tar_bytes(self.index, positions), manifest.summary["moved"], sum(spent.values()), sources.gpu_seconds(spent),
            rows.digest,
        )  # fmt: skip

    def within(self, variant: Variant, budget: int, seed: int, soft: bool = False) -> tuple[Rows, Outcome]:
        """The largest selection whose container takes no more than `budget` bytes.

        Args:
            soft: with a soft label for each image.

        Raises:
            ValueError: not even one image does.
        """

        images = self.index.images

        def of(count: int) -> tuple[Rows, Outcome]:
            rows, outcome = self.of(variant, count / images, seed)
            return rows, replace(outcome, payload=payload_bytes(self.index, rows.positions, soft))

        def payload(count: int) -> int:
            return of(count)[1].payload

        if payload(1) > budget:
            raise ValueError(f"{budget:,} bytes hold no image of {self.index.data.root}: one takes {payload(1):,}")
        count = images_that_fit(budget, images, payload, close=0.0)
        return of(count)
