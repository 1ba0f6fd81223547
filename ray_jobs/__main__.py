"""`python -m ray_jobs JOB`: the jobs. What they are asked comes from their dataclasses, through `ray_jobs.command_line`."""

import sys
from collections.abc import Sequence
from dataclasses import replace

import click
import ray

from ray_jobs import compress as pipeline
from ray_jobs.actors import cause
from ray_jobs.command_line import options, several_values
from ray_jobs.compare import run as run_comparison
from ray_jobs.convert import Conversion, convert
from ray_jobs.distill import Distilling, Wanted
from ray_jobs.distill import run as run_distillation
from ray_jobs.encode import Storage
from ray_jobs.encode import command as run_encoding
from ray_jobs.evaluate import Evaluation
from ray_jobs.evaluate import run as run_evaluation
from ray_jobs.experts import Experts, Network
from ray_jobs.experts import run as run_experts
from ray_jobs.fill import Filling
from ray_jobs.fill import run as run_filling
from ray_jobs.frontier import Budgets
from ray_jobs.frontier import run as run_frontier
from ray_jobs.grid import Comparison, Grid
from ray_jobs.mae import Painting
from ray_jobs.mae import run as run_mae
from ray_jobs.options import Backbone, Compute, Data, Place, Selection
from ray_jobs.rank import run as run_ranking
from ray_jobs.rded import Mosaics
from ray_jobs.rded import run as run_rded
from ray_jobs.relabel import run as run_relabelling
from ray_jobs.selections import Exchange, run_export, run_import
from ray_jobs.spend import Spend
from ray_jobs.spend import run as run_spending


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
def main() -> None:
    """Tessera: cluster-scale dataset compression for image classification, on Ray.

    `compress` runs the whole pipeline; each stage is a job of its own, which runs the ones before it as far as they are missing.
    """


@main.command()
@click.option("--out", required=True, metavar="PLACE", help="Folder, s3:// or gs:// for the compressed shards.")
@options(Data, Selection, Storage, Spend, Backbone, Compute, Place)
def compress(data, selection, storage, spend, backbone, compute, place, out):
    """Keep a part of the images: ingest, weights, extract, bins, score, sample, write, encode."""
    wanted = pipeline.Compression(data, backbone, selection, out, storage)
    if spend.budget:
        run_spending(wanted, spend, storage, compute, place)
    else:
        pipeline.run(wanted, compute, place)


@main.command()
@click.option("--out", required=True, metavar="PLACE", help="Folder, s3:// or gs:// for the encoded shards.")
@options(Storage, Data, Backbone, Compute, Place)
def encode(storage, data, backbone, compute, place, out):
    """Store the images of any shards in another way: smaller, in JPEG or WebP, in few colours, without their dullest patches."""
    run_encoding(storage, data, backbone, compute, place, out)


@main.command()
@click.option("--out", required=True, metavar="PLACE", help="Folder, s3:// or gs:// for the whole images.")
@options(Filling, Data, Compute, Place, without=("skip_corrupt", "graphcut_actors"))
def fill(filling, data, compute, place, out):
    """Fill the gaps of images whose patches were dropped, once: a cache to train on, made by a masked autoencoder or otherwise."""
    run_filling(filling, data, compute, place, out)


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
@click.option("--test", multiple=True, required=True, metavar="SHARDS", help="Held-out shards; each image counts once.")
@click.option(
    "--out", required=True, metavar="PLACE", help="Folder, s3:// or gs:// for the table, the figure and every run."
)
@options(
    Budgets, Comparison, Evaluation, Data, Selection, Backbone, Compute, Place,
    without=("keep", "without_controls", "method", "seed", "labels", "skip_corrupt"),
)  # fmt: skip
def frontier(budgets, comparison, evaluation, data, selection, backbone, compute, place, test, out):
    """Accuracy over bytes: what a budget buys, for every way to spend it."""
    comparison = replace(comparison, without_controls=True)
    run_frontier(budgets, Grid(comparison, evaluation, data, selection, backbone, test, out), compute, place)


@main.command()
@click.option("--out", required=True, metavar="PLACE", help="Folder, s3:// or gs:// for the mosaics as shards.")
@options(Mosaics, Data, Backbone, Compute, Place, without=("skip_corrupt", "graphcut_actors", "embeddings"))
def rded(mosaics, data, backbone, compute, place, out):
    """Distil without optimisation: mosaics of the crops that a trained network finds most realistic (RDED)."""
    run_rded(mosaics, data, backbone, compute, place, out)


@main.command()
@click.option(
    "--distilled", required=True, metavar="SHARDS", help="The distilled set: the --out folder of distill, or shards."
)
@click.option("--test", multiple=True, required=True, metavar="SHARDS", help="Held-out shards; each image counts once.")
@options(Evaluation, Data, Backbone, Compute, Place, without=("skip_corrupt", "graphcut_actors", "embeddings"))
def rank(evaluation, data, backbone, compute, place, distilled, test):
    """DD-Ranking's label- and augmentation-robust scores of a distilled set, at equal bytes instead of equal images.

    With --labels soft, random images get the soft labels of the backbone, trained on all images.
    """
    run_ranking(distilled, data, test, evaluation, backbone, compute, place)


@main.command()
@click.option("--train", multiple=True, required=True, metavar="SHARDS", help="The images; patterns as for --data.")
@click.option("--out", required=True, metavar="PLACE", help="Folder, s3:// or gs:// for the images with soft labels.")
@options(Data, Backbone, Compute, Place, without=("skip_corrupt", "graphcut_actors", "embeddings"))
def relabel(data, backbone, compute, place, train, out):
    """Put soft labels beside images: the logits of a network trained on --data; then `evaluate --labels soft`."""
    run_relabelling(train, data, backbone, compute, place, out)


@main.command()
@options(Network, Experts, Data, Compute, Place, without=("batch_size", "graphcut_actors"))
def experts(network, experts, data, compute, place):
    """Train the experts of trajectory matching: networks on the real data, a checkpoint an epoch."""
    run_experts(network, experts, data, compute, place)


@main.command()
@click.option("--out", required=True, metavar="FILE", help="The weights file to write (.pt), or a folder for mae.pt.")
@options(Painting, Data, Compute, Place, without=("batch_size", "graphcut_actors"))
def mae(painting, data, compute, place, out):
    """Train a masked autoencoder on the data itself, which then fills dropped patches: a weights file and a figure."""
    run_mae(painting, data, compute, place, out)


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
