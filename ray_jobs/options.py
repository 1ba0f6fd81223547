"""What a user can set: frozen dataclasses, one line a field, from which the command line and its help are made."""

from dataclasses import dataclass, field, fields

from adq.images import EXTENSIONS
from adq.models import LARGE_SIDE, SMALL, default_backbone
from adq.sampling import ALLOCATIONS, BALANCES
from adq.selection import ALL_METHODS


def option(default, text: str, choices: tuple[str, ...] | None = None, metavar: str | None = None):
    return field(default=default, metadata={"help": text, "choices": choices, "metavar": metavar})


def _check_choices(options) -> None:
    for f in fields(options):
        choices = f.metadata.get("choices")
        if choices and getattr(options, f.name) not in choices:
            name = f.name.replace("_", "-")
            raise ValueError(f"--{name} {getattr(options, f.name)}: expected one of {', '.join(choices)}")


@dataclass(frozen=True)
class Data:
    """Which images, and how shards are read."""

    data: tuple[str, ...] = option((), "Shards: brace patterns, globs, folders or files; local, s3:// or gs://. Several are one data set.", metavar="SHARDS")  # fmt: skip
    image_ext: str = option(",".join(EXTENSIONS), "Extensions that hold the image.", metavar="EXT,EXT")
    label: str = option(
        "cls",
        "Where the label is: cls, or json:FIELD (of a sample without a .json, its .cls).",
        metavar="cls|json:FIELD",
    )
    classes: str | None = option(None, "Class names, one a line, in label order. [default: classes.txt beside the shards]", metavar="FILE")  # fmt: skip
    key_prefix: str = option("none", "shard: put the shard's name before each key, where keys are unique per shard only.", ("none", "shard"))  # fmt: skip
    skip_corrupt: bool = option(
        False,
        "Leave out images that cannot be decoded, instead of failing: every method then chooses among the others.",
    )

    def __post_init__(self):
        _check_choices(self)

    @property
    def image_extensions(self) -> tuple[str, ...]:
        return tuple(ext.strip().lower().lstrip(".") for ext in self.image_ext.split(",") if ext.strip())


@dataclass(frozen=True)
class Compute:
    """Where the work runs. Device, batch size and threads are part of a result's identity; the number of actors is not."""

    device: str = option("auto", "auto is cuda where the cluster has GPUs.", ("auto", "cpu", "cuda"))
    actors: int = option(0, "Actors that read, decode and run the backbone; 0: one per GPU, else per set of CPUs.")
    cpus_per_actor: float = option(
        0.0,
        "CPUs that an actor reserves; its image decoding uses as many threads. 0: 1, and on cuda its GPUs' share of their node's "
        "CPUs, which trainings have there, too.",
    )
    gpus_per_actor: float = option(1.0, "GPUs that an actor reserves, on cuda.")
    graphcut_actors: int = option(
        0, "Actors that hold the embeddings for GraphCut; 0: the driver up to 2 GB, else as many as --actors."
    )
    batch_size: int = option(256, "Images a batch of the backbone.")
    threads: int = option(1, "Threads of one worker's arithmetic, and on CPUs of a training's image decoding.")

    def __post_init__(self):
        _check_choices(self)
        for name in ("gpus_per_actor", "batch_size", "threads"):
            if not getattr(self, name) > 0:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected a number above 0")
        if not self.cpus_per_actor >= 0:
            raise ValueError(f"--cpus-per-actor {self.cpus_per_actor}: expected 0 (as many as fit) or more")
        for name in ("actors", "graphcut_actors"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"--{name.replace('_', '-')} {getattr(self, name)}: expected 0 (as many as fit) or more"
                )


@dataclass(frozen=True)
class Backbone:
    """The network that gives the features."""

    backbone: str | None = option(None, "Network by name. [default: vit_b_16 from 96 px; below, resnet18 on GPUs and convnet-d3-w64 on CPUs]", metavar="NAME")  # fmt: skip
    weights: str | None = option(None, "torchvision's name (IMAGENET1K_V1), a local file, or train:EPOCHS on the data itself. [default: DEFAULT of torchvision from 96 px; below, train:10]", metavar="NAME|FILE|train:EPOCHS")  # fmt: skip
    feature_size: int = option(
        0, "Side in pixels at which the backbone sees the images; 0: the images' own below 96, else 224."
    )
    feature_seed: int = option(0, "Seed of the backbone's training, of the augmented views and of the discriminator.")
    train_workers: int = option(
        1, "Ray Train workers where the backbone is trained, or watched in training by methods that do so."
    )
    embeddings: str | None = option(None, "Your own embeddings for the bins: .npy in key order, or Parquet with key and embedding.", metavar="FILE")  # fmt: skip

    def __post_init__(self):
        if self.train_workers < 1:
            raise ValueError(f"--train-workers {self.train_workers}: expected 1 or more")
        if self.feature_size < 0:
            raise ValueError(f"--feature-size {self.feature_size}: expected a side in pixels, or 0")

    def name(self, side: int, device: str) -> str:
        """The network, for images of this side."""
        return self.backbone or default_backbone(self.feature_size or side, device)

    def side(self, side: int) -> int:
        """The side at which the backbone sees images of this side."""
        return self.feature_size or (side if side < SMALL else LARGE_SIDE)


@dataclass(frozen=True)
class Selection:
    """The method."""

    method: str = option("adq", "adq; dq keeps the same share of every bin; random is stratified; the others are in README's table.", ALL_METHODS)  # fmt: skip
    keep: float = option(0.1, "Share of the images kept, above 0 and up to 1.")
    scope: str = option("class", "GraphCut inside each class, or over the whole data set.", ("class", "global"))
    bins: int = option(10, "Number of bins m.")
    normalize: str = option("l2", "l2: embeddings are made unit vectors; none: raw distances.", ("l2", "none"))
    centre: str = option(
        "none", "class: subtract the class mean from the embeddings before GraphCut.", ("none", "class")
    )
    scores: str = option("both", "Scores that make the importance.", ("both", "texture", "diversity"))
    diversity: str = option("mean", "mean is eq. 5; log is less ruled by a few images; code is 1 / mean cosine.", ("mean", "log", "code"))  # fmt: skip
    temperature: float = option(0.07, "Temperature tau of the discriminator and of eq. 5.")
    score_norm: str = option("minmax", "How scores are brought to one scale over the bins.", ("minmax", "zscore"))
    alpha: float = option(0.65, "Weight of the importance: 0 is exactly DQ, 1 is importance alone.")
    allocation: str = option("share", "share respects --keep; literal is eq. 10 as printed; code is the published code's rule.", ALLOCATIONS)  # fmt: skip
    depth: float = option(
        0.0, "Share of the GraphCut order from which prefix draws and support-points picks; 0: wider, the more is kept."
    )
    beta: float = option(-1.0, "Share of the hardest that ccs leaves out of each class; -1: by --keep, as the paper found for CIFAR-10.")  # fmt: skip
    neighbours: int = option(10, "Nearest images of its class to which d2 sends an image's difficulty.")
    gamma_reverse: float = option(
        1.0, "How fast d2's reverse messages, which spread the picks, fall with the distance."
    )
    balance: str = option(
        "class", "class: every class keeps its share of the total; none: whatever its bins give.", BALANCES
    )
    permutation: int = option(0, "Of adq-permuted: which of the orders of the importance that a seed draws.")
    seed: int = option(0, "Seed of ties and of the draws.")

    def __post_init__(self):
        _check_choices(self)
        if self.permutation < 0:
            raise ValueError(f"--permutation {self.permutation}: expected 0 or more")
        if not 0 < self.keep <= 1:
            raise ValueError(f"--keep {self.keep}: expected a share of the images above 0 and up to 1, e.g. 0.1")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"--alpha {self.alpha}: expected 0 (DQ) to 1")
        if not 0 <= self.depth <= 1:
            raise ValueError(f"--depth {self.depth}: expected 0 (by --keep) to 1")
        if not (self.beta == -1 or 0 <= self.beta < 1):
            raise ValueError(f"--beta {self.beta}: expected a share from 0 to below 1, or -1 (by --keep)")
        if self.neighbours < 1 or not self.gamma_reverse >= 0:
            raise ValueError(
                f"--neighbours {self.neighbours}, --gamma-reverse {self.gamma_reverse}: expected 1 or more, and no negative number"
            )
        if self.bins < 1:
            raise ValueError(f"--bins {self.bins}: expected 1 or more")
        if self.method in ("prefix", "support-points") and self.scope != "class":
            raise ValueError(f"--method {self.method} takes the GraphCut order of each class: use --scope class")
        if not self.temperature > 0:
            raise ValueError(f"--temperature {self.temperature}: expected a number above 0")


# Where paper, published code and ours differ; the README's page on deviations says why.
PRESETS = {
    "default": {},
    "paper": {"allocation": "literal", "diversity": "mean", "score_norm": "minmax", "balance": "none", "alpha": 0.65},
    "reference": {"allocation": "code", "diversity": "code", "score_norm": "minmax", "balance": "none"},
}


@dataclass(frozen=True)
class Place:
    """Where results and records go."""

    store: str = option("./runs", "Folder, s3:// or gs:// for all stages' results.", metavar="PLACE")
    tracking_uri: str | None = option(None, "MLflow tracking server. [default: MLFLOW_TRACKING_URI, else mlflow.db in the store]", metavar="URI")  # fmt: skip
    experiment: str = option("tessera", "MLflow experiment.")
    run_name: str | None = option(None, "Name of the MLflow run. [default: made from method, data and keep ratio]")
