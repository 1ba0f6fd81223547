"""`python -m ray_jobs JOB`: the command line. Options come from the dataclasses of each job."""

import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import fields
from types import UnionType
from typing import get_args, get_origin, get_type_hints

import click
import ray

from ray_jobs import compress as pipeline
from ray_jobs.actors import cause
from ray_jobs.cluster import check_paths
from ray_jobs.compare import run as run_comparison
from ray_jobs.convert import Conversion, convert
from ray_jobs.distill import Distilling, Wanted
from ray_jobs.distill import run as run_distillation
from ray_jobs.evaluate import Evaluation
from ray_jobs.evaluate import run as run_evaluation
from ray_jobs.experts import Experts, Network
from ray_jobs.experts import run as run_experts
from ray_jobs.grid import Comparison, Grid
from ray_jobs.options import PRESETS, Backbone, Compute, Data, Place, Selection
from ray_jobs.rank import run as run_ranking
from ray_jobs.selections import Exchange, run_export, run_import

SEVERAL = ("--data", "--train", "--test")
RENAMED = {"from_path": "from"}
PLACES = (
    "data", "train", "test", "from_path", "val_labels", "selection", "to", "distilled", "out", "store", "classes", "embeddings",
)  # fmt: skip


def options(*groups: type, without: tuple[str, ...] = ()) -> Callable:
    """Add an option for every field of some dataclasses; the command gets one object of each, in that order.

    A name that two of them have belongs to the first; the other keeps its default.
    """

    def asked(group: type) -> list:
        taken = {f.name for earlier in groups[: groups.index(group)] for f in fields(earlier)}
        return [f for f in fields(group) if f.name not in {*without, *taken}]

    def decorate(function: Callable) -> Callable:
        def call(**values):
            _check_places(values)
            built = [group(**{f.name: values.pop(f.name) for f in asked(group)}) for group in groups]
            return function(*built, **values)

        call.__name__, call.__doc__ = function.__name__, function.__doc__
        call.__click_params__ = getattr(function, "__click_params__", [])
        for group in reversed(groups):
            hints = get_type_hints(group)
            for f in reversed(asked(group)):
                call = _click_option(f, hints[f.name])(call)
        if Selection in groups:
            call = click.option(
                "--preset", type=click.Choice(list(PRESETS)), is_eager=True, expose_value=False, callback=_use_preset,
                help="paper: eq. 10 as printed; reference: what the published code does; default: ours.",
            )(call)  # fmt: skip
        return click.option(
            "--config", metavar="FILE", is_eager=True, expose_value=False, callback=_read_config,
            help="A TOML file of these options; the command line wins.",
        )(call)  # fmt: skip

    return decorate


def _check_places(values: dict) -> None:
    """In a submitted job a relative path is an error, before anything is looked for there."""
    for name in PLACES:
        given = values.get(name)
        for path in given if isinstance(given, tuple) else (given,):
            check_paths(**{RENAMED.get(name, name): path})


def _click_option(f, hint: type) -> Callable:
    name = "--" + RENAMED.get(f.name, f.name).replace("_", "-")
    if isinstance(hint, UnionType):
        hint = next(kind for kind in get_args(hint) if kind is not type(None))
    told = f.default not in (None, ()) or ("[default:" not in f.metadata["help"] and "none")
    shared = {"help": f.metadata["help"], "show_default": told}
    if hint is bool:
        return click.option(name, f.name, is_flag=True, default=f.default, **shared | {"show_default": "off"})
    if get_origin(hint) is tuple:
        return click.option(name, f.name, multiple=True, metavar=f.metadata["metavar"], **shared)
    kind = click.Choice(f.metadata["choices"]) if f.metadata["choices"] else hint
    return click.option(name, f.name, type=kind, default=f.default, metavar=f.metadata["metavar"], **shared)


def _read_config(context: click.Context, _parameter: click.Parameter, path: str | None) -> None:
    if path is None:
        return
    try:
        with open(path, "rb") as file:
            values = tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise click.ClickException(f"--config {path}: {error}") from error
    flat = {k: v for k, v in values.items() if not isinstance(v, dict)} | values.get(context.info_name, {})
    flat = {k.replace("-", "_"): v for k, v in flat.items()}
    names = {p.name: p for p in context.command.params if p.name != "config"}
    spoken = {RENAMED.get(name, name): name for name in names}
    unknown = sorted(set(flat) - set(spoken))
    if unknown:
        raise click.ClickException(f"--config {path}: unknown option {', '.join(unknown)}; see --help")
    for key, value in flat.items():
        several = getattr(names[spoken[key]], "multiple", False)
        if isinstance(value, list) and not several:
            raise click.ClickException(f"--config {path}: --{key.replace('_', '-')} takes one value, not a list")
        # As text, like the command line: click would make 2 of bins = 2.5.
        flat[key] = [str(v) for v in (value if isinstance(value, list) else [value])] if several else str(value)
    context.default_map = {**(context.default_map or {}), **{spoken[key]: value for key, value in flat.items()}}


def _use_preset(context: click.Context, _parameter: click.Parameter, name: str | None) -> None:
    if name is not None:
        context.default_map = {**PRESETS[name], **(context.default_map or {})}


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
def main() -> None:
    """Tessera: cluster-scale dataset compression for image classification, on Ray.

    `compress` runs the whole pipeline; each stage is a job of its own, which runs the ones before it as far as they are missing.
    """


@main.command()
@click.option("--out", required=True, metavar="PLACE", help="Folder, s3:// or gs:// for the compressed shards.")
@options(Data, Selection, Backbone, Compute, Place)
def compress(data, selection, backbone, compute, place, out):
    """Keep a part of the images: ingest, weights, extract, bins, score, sample, write."""
    pipeline.run(pipeline.Compression(data, backbone, selection, out), compute, place)


@main.command()
@click.option("--out", required=True, metavar="PLACE", help="Folder, s3:// or gs:// for the compressed shards.")
@options(Data, Selection, Backbone, Compute, Place)
def write(data, selection, backbone, compute, place, out):
    """Write the subset as WebDataset shards; members keep their bytes and names."""
    pipeline.run(pipeline.Compression(data, backbone, selection, out), compute, place)


@main.command()
@options(Conversion, Data, Compute, Place)
def ingest(conversion, data, compute, place):
    """Read and check shards; with --source, make them first from CIFAR, ImageFolder, Tiny-ImageNet or ImageNet."""
    if conversion.source:
        data = Data(**{**data.__dict__, "data": tuple(convert(conversion))})
    pipeline.run(pipeline.Compression(data, Backbone(), Selection()), compute, place, "ingest")


@main.command()
@options(Data, Backbone, Compute, Place)
def weights(data, backbone, compute, place):
    """Get the backbone's weights: torchvision's, a file's, or by training on the data."""
    pipeline.run(pipeline.Compression(data, backbone, Selection()), compute, place, "weights")


@main.command()
@options(Data, Backbone, Compute, Place)
def extract(data, backbone, compute, place):
    """Read the features of every image, each decoded once."""
    pipeline.run(pipeline.Compression(data, backbone, Selection()), compute, place, "extract")


@main.command()
@options(Data, Selection, Backbone, Compute, Place)
def bins(data, selection, backbone, compute, place):
    """Cut the data set into bins by exact greedy GraphCut."""
    pipeline.run(pipeline.Compression(data, backbone, selection), compute, place, "bins")


@main.command()
@options(Data, Selection, Backbone, Compute, Place)
def score(data, selection, backbone, compute, place):
    """Score the bins for texture and diversity."""
    pipeline.run(pipeline.Compression(data, backbone, selection), compute, place, "score")


@main.command()
@options(Data, Selection, Backbone, Compute, Place)
def sample(data, selection, backbone, compute, place):
    """Choose the images: quotas, joint rounding, draws."""
    pipeline.run(pipeline.Compression(data, backbone, selection), compute, place, "sample")


@main.command()
@click.option(
    "--train", multiple=True, required=True, metavar="SHARDS", help="Shards to train on; patterns as for --data."
)
@click.option("--test", multiple=True, required=True, metavar="SHARDS", help="Held-out shards; each image counts once.")
@options(Evaluation, Data, Compute, Place, without=("data", "skip_corrupt"))
def evaluate(evaluation, reading, compute, place, train, test):
    """Train networks on a data set and test them on another: last-epoch top-1 over seeds."""
    run_evaluation(train, test, evaluation, reading, compute, place)


@main.command()
@click.option("--out", required=True, metavar="PLACE", help="Folder, s3:// or gs:// for shards, container and PNGs.")
@options(Distilling, Network, Experts, Data, Compute, Place, without=("batch_size", "graphcut_actors"))
def distill(distilling, network, experts, data, compute, place, out):
    """Distil a data set into a few synthetic images a class, in few colours: a container, shards and PNGs."""
    run_distillation(Wanted(distilling, network, experts, data, out), compute, place)


@main.command()
@click.option("--test", multiple=True, required=True, metavar="SHARDS", help="Held-out shards; each image counts once.")
@click.option(
    "--out", required=True, metavar="PLACE", help="Folder, s3:// or gs:// for the table, the figures and every run."
)
@options(Comparison, Evaluation, Data, Selection, Backbone, Compute, Place, without=("method", "seed", "labels"))
def compare(comparison, evaluation, data, selection, backbone, compute, place, test, out):
    """Compare selection methods: networks trained on what each keeps, differences to random and DQ with their intervals."""
    run_comparison(Grid(comparison, evaluation, data, selection, backbone, test, out), compute, place)


@main.command()
@click.option(
    "--distilled", required=True, metavar="SHARDS", help="The distilled set: the --out folder of distill, or shards."
)
@click.option("--test", multiple=True, required=True, metavar="SHARDS", help="Held-out shards; each image counts once.")
@options(Evaluation, Data, Compute, Place, without=("labels", "skip_corrupt", "batch_size", "graphcut_actors"))
def rank(evaluation, data, compute, place, distilled, test):
    """DD-Ranking's label- and augmentation-robust scores of a distilled set, at equal bytes instead of equal images."""
    run_ranking(distilled, data, test, evaluation, compute, place)


@main.command()
@options(Network, Experts, Data, Compute, Place, without=("batch_size", "graphcut_actors"))
def experts(network, experts, data, compute, place):
    """Train the experts of trajectory matching: networks on the real data, a checkpoint an epoch."""
    run_experts(network, experts, data, compute, place)


@main.command("export")
@click.option("--selection", required=True, metavar="PLACE", help="The --out folder of compress, write or import.")
@click.option("--to", required=True, metavar="FILE", help="The file to write; keys to .tsv are separated by tabs.")
@options(Exchange, Data, Compute, Place, without=("skip_corrupt", "batch_size", "graphcut_actors"))
def export_selection(exchange, data, compute, place, selection, to):
    """Write a selection as a file for other tools: keys with sha256, torchvision's indices, a file list, DQ's .npy."""
    run_export(selection, to, exchange, data, compute, place)


@main.command("import")
@click.option("--from", "from_path", required=True, metavar="FILE", help="The file that names the images.")
@click.option("--out", required=True, metavar="PLACE", help="Folder, s3:// or gs:// for the chosen images as shards.")
@options(Exchange, Data, Compute, Place, without=("skip_corrupt", "batch_size", "graphcut_actors"))
def import_selection(exchange, data, compute, place, from_path, out):
    """Write the images of anyone's selection as shards, which `evaluate --train` scores like any other."""
    run_import(from_path, out, exchange, data, compute, place)


@main.command()
@click.option("--folder", default="./demo", show_default=True, metavar="FOLDER", help="Where the demonstration works.")
@click.option("--seeds", default=3, show_default=True, help="Trainings of each set.")
def demo(folder, seeds):
    """The whole pipeline on an embedded data set: compress it in three ways, train on the results, print a table."""
    from ray_jobs.demo import run

    run(folder, seeds)


def several_values(arguments: Sequence[str]) -> list[str]:
    """`--data a b c` as `--data a --data b --data c`."""
    out: list[str] = []
    current = None
    for argument in arguments:
        if argument.startswith("-"):
            current = argument if argument in SEVERAL else None
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
    except (ValueError, OSError, RuntimeError, ArithmeticError, ray.exceptions.RayError) as error:
        told = cause(error)
        if not isinstance(told, ValueError | OSError | ArithmeticError) and type(told) is not RuntimeError:
            raise
        click.echo(f"Error: {told}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    start()
