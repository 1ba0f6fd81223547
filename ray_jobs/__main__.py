"""`python -m ray_jobs JOB`: the jobs, each loaded when it is asked for. Their options come from dataclasses (`command_line`)."""

import sys
from collections.abc import Sequence
from importlib import import_module

import click

# What a user wants to do, the module of `ray_jobs.commands`, and its jobs with a line of help each.
JOBS = {
    ("Keep a part of the images", "keep"): {
        "compress": "The whole pipeline, from shards to shards.",
        "ingest": "Read and check shards, or make them: CIFAR, ImageNet, folders.",
        "weights": "The backbone's weights: torchvision's, a file's, or trained here.",
        "extract": "Read the features of every image, each decoded once.",
        "bins": "Cut the data set into bins by exact greedy GraphCut.",
        "score": "Score the bins for texture and diversity.",
        "sample": "Choose the images: quotas, joint rounding, draws.",
        "write": "Write the chosen images as WebDataset shards, as they were.",
    },
    ("Distil into images that no data set had", "distil"): {
        "distill": "A few synthetic images a class, in few colours (AutoPalette).",
        "experts": "Train the experts of trajectory matching.",
        "rded": "Mosaics of realistic crops, without optimisation (RDED).",
        "relabel": "Put a trained network's soft labels beside images.",
    },
    ("Say what it is worth", "judge"): {
        "evaluate": "Train networks on a set and test them on another.",
        "compare": "Compare selection methods: accuracies, intervals, cost.",
        "frontier": "Accuracy over bytes: the best way to spend a budget.",
        "rank": "DD-Ranking's robust scores of a distilled set, at equal bytes.",
    },
    ("Store images in another way", "store"): {
        "encode": "Smaller, in JPEG or WebP, in few colours, without some patches.",
        "fill": "Fill the gaps of dropped patches, once.",
        "mae": "Train the masked autoencoder that fills them best.",
        "pack": "One compact file, of the bytes that are reported as payload.",
        "unpack": "Such a file as shards again.",
    },
    ("Selections of others", "exchange"): {
        "export": "A selection as keys, as indices, as a file list, as DQ's .npy.",
        "import": "Anyone's selection as shards.",
    },
    ("Look around", "look"): {
        "status": "What lies in a store: stages, finished or not, and their bytes.",
        "demo": "The whole pipeline on an embedded data set.",
    },
}
GPU_FULL = (
    "a GPU's memory is full: take fewer images a step (--train-batch, of distill --batch-real, else --batch-size) or smaller ones "
    "(--image-size); where several trainings share a GPU, --gpus-per-training 1"
)
SEVERAL = ("--data", "--train", "--test", "--sets")
SEVERAL_OF = {"unpack": ("--from",)}  # of which other jobs take one


class Jobs(click.Group):
    """Commands that are imported when they are asked for: a list of them should not take the seconds that PyTorch does."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for jobs in JOBS.values() for name in jobs]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        for (_, module), jobs in JOBS.items():
            if name in jobs:
                found = vars(import_module(f"ray_jobs.commands.{module}")).values()
                return next(one for one in found if isinstance(one, click.Command) and one.name == name)
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        widest = max(len(name) for name in self.list_commands(ctx))
        for (title, _), jobs in JOBS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(widest), line) for name, line in jobs.items()])


@click.group(cls=Jobs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
def main() -> None:
    """Tessera: cluster-scale dataset compression for image classification, on Ray.

    Every job runs the stages before it as far as they are missing, and goes on where it was. `JOB --help` explains its options.
    """


def several_values(arguments: Sequence[str]) -> list[str]:
    """`--data a b c` as `--data a --data b --data c`, of every option of SEVERAL, and of the job's own."""
    several = (*SEVERAL, *SEVERAL_OF.get(arguments[0] if arguments else "", ()))
    out: list[str] = []
    current = None
    for argument in arguments:
        if argument.startswith("-"):
            current = argument if argument in several else None
            out += [] if current else [argument]
        elif current:
            out += [current, argument]
        else:
            out.append(argument)
    return out


def start(arguments: Sequence[str] | None = None) -> None:
    """Run a job; what a user can mend is one clear message, not a traceback."""
    try:
        main(several_values(sys.argv[1:] if arguments is None else arguments), prog_name="python -m ray_jobs")
    except Exception as error:
        from ray_jobs.actors import cause  # with Ray, which `--help` does without

        told = cause(error)
        if type(told).__name__ == "OutOfMemoryError" and type(told).__module__.startswith("torch"):
            told = RuntimeError(f"{GPU_FULL} ({str(told).splitlines()[0]})")
        if not isinstance(told, ValueError | OSError | ArithmeticError) and type(told) is not RuntimeError:
            raise
        click.echo(f"Error: {told}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    start()
