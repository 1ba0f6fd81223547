"""What selection methods look at, made once for all that share it: features, bins, scores, the dynamics of a short training."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from adq.models import SMALL
from adq.selection import needs
from ray_jobs import bins, decode, dynamics, extract, score, weights
from ray_jobs.actors import pool_size
from ray_jobs.ingest import Index
from ray_jobs.options import Backbone, Selection
from ray_jobs.sample import Seen
from ray_jobs.stages import Manifest
from ray_jobs.weights import Extractor

if TYPE_CHECKING:  # what only the driver needs is not loaded by the actors
    from ray_jobs.job import Job

BIN_OPTIONS = ("bins", "scope", "normalize", "centre")


def extracts(method: str, backbone: Backbone) -> bool:
    """Whether a method needs the stage extract."""
    wanted = needs(method)
    return "scores" in wanted or ("embeddings" in wanted and not backbone.embeddings)


def trained_epochs(backbone: Backbone, index: Index) -> int | None:
    """Epochs for which the extractor is trained here; None where its weights are loaded."""
    source = backbone.weights or (
        "DEFAULT" if backbone.side(index.side) >= SMALL else f"train:{weights.DEFAULT_EPOCHS}"
    )
    trained = re.fullmatch(r"train:(\d+)", source)
    return int(trained[1]) if trained else None


@dataclass
class Sources:
    """The stages before `sample`, for one extractor; each is run when it is first asked for.

    Attributes:
        held: the embeddings that were read last; extractors that share it hold one matrix in all.
    """

    job: "Job"
    index: Index
    backbone: Backbone
    skip_corrupt: bool = False
    held: dict = field(default_factory=dict)
    _made: dict[object, object] = field(default_factory=dict)
    _seconds: dict[object, list[tuple[str, float]]] = field(default_factory=dict)

    def seen(self, selection: Selection, watched: int) -> Seen:
        """What a method may look at, and no more than it needs.

        Args:
            watched: seed of the short training, for methods that look at one.
        """
        wanted = needs(selection.method)
        own = self._own(selection) if self.backbone.embeddings and "embeddings" in wanted else None
        return Seen(
            bins=self._bins(selection) if wanted & {"bins", "scores"} else None,
            scores=self._scores(selection) if "scores" in wanted else None,
            extract=self._extract() if self._extracts(selection) else None,
            dynamics=self._dynamics(watched) if "dynamics" in wanted else None,
            own=own,
            undecoded=self._undecoded(selection),
            held=self.held,
        )  # fmt: skip

    def seconds(self, selection: Selection, watched: int) -> dict[str, float]:
        """What the stages cost that `seen` gave, by their names: once each, however many methods share them."""
        wanted = needs(selection.method)
        asked: list[object] = []
        if self._extracts(selection):
            asked += ["weights", "extract"]
        elif self.skip_corrupt:
            asked.append("decode")
        if wanted & {"bins", "scores"}:
            asked.append(self._bin_key(selection))
        if "scores" in wanted:
            asked.append(self._score_key(selection))
        if "dynamics" in wanted:
            asked.append(("dynamics", watched))
        total: dict[str, float] = {}
        for name, spent in (entry for key in asked for entry in self._seconds.get(key, ())):
            total[name] = total.get(name, 0.0) + spent
        return total

    def gpu_seconds(self, spent: Mapping[str, float]) -> float:
        """GPU seconds of stages, by their seconds: of each, the GPUs that it reserves."""
        return sum(seconds * self._gpus(name) for name, seconds in spent.items())

    def _gpus(self, stage: str) -> float:
        job, compute = self.job, self.job.compute
        if job.device != "cuda":
            return 0.0
        if stage == "dynamics" or (stage == "weights" and trained_epochs(self.backbone, self.index) is not None):
            return self.backbone.train_workers
        actors = {"extract": pool_size(job.cluster, compute, job.device, len(self.index.data.shards))}
        if stage == "bins" and not self.backbone.embeddings:
            return compute.gpus_per_actor * self._once("holders", lambda: bins.actors(job, self._extract()))
        return compute.gpus_per_actor * actors.get(stage, 0)

    def _once(self, key: object, make) -> object:
        if key not in self._made:
            before = len(self.job.ledger)
            self._made[key] = make()
            self._seconds[key] = list(self.job.ledger[before:])
        return self._made[key]

    def _own(self, selection: Selection) -> tuple:
        left_out = self._undecoded(selection)
        return self._once("own", lambda: bins.own_embeddings(self.backbone.embeddings, self.index, left_out))

    def _weights(self) -> Extractor:
        return self._once("weights", lambda: weights.run(self.job, self.index, self.backbone))

    def _extract(self) -> Manifest:
        extractor = self._weights()
        seed = self.backbone.feature_seed
        return self._once("extract", lambda: extract.run(self.job, self.index, extractor, seed, self.skip_corrupt))

    def _extracts(self, selection: Selection) -> bool:
        return extracts(selection.method, self.backbone)

    def _undecoded(self, selection: Selection) -> tuple[str, ...]:
        """The same whoever says so: features are of every image that can be decoded."""
        if not self.skip_corrupt:
            return ()
        said_by = (
            self._extract()
            if self._extracts(selection)
            else self._once("decode", lambda: decode.run(self.job, self.index))
        )
        return self._once("undecoded", lambda: decode.undecoded(said_by))

    def _bins(self, selection: Selection) -> Manifest:
        features, own = self._extract() if self._extracts(selection) else None, self.backbone.embeddings
        left_out = self._undecoded(selection)
        return self._once(
            self._bin_key(selection), lambda: bins.run(self.job, self.index, features, selection, own, left_out)
        )  # fmt: skip

    def _scores(self, selection: Selection) -> Manifest:
        # The discriminator belongs to the extractor: draws of one data set share it.
        same = replace(selection, seed=self.backbone.feature_seed)
        features, cut = self._extract(), self._bins(selection)
        return self._once(self._score_key(selection), lambda: score.run(self.job, features, cut, same))

    def _dynamics(self, watched: int) -> Manifest:
        network = replace(self.backbone, feature_seed=watched)
        return self._once(
            ("dynamics", watched), lambda: dynamics.run(self.job, self.index, network, self.skip_corrupt)
        )  # fmt: skip

    def _bin_key(self, selection: Selection) -> tuple:
        scored = bool(self.backbone.embeddings) and "scores" in needs(selection.method)
        return ("bins", scored, *(getattr(selection, name) for name in BIN_OPTIONS))

    def _score_key(self, selection: Selection) -> tuple:
        options = ("scores", "diversity", "temperature", "score_norm")
        return ("score", *self._bin_key(selection)[1:], *(getattr(selection, name) for name in options))
