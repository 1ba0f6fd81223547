"""Jobs that keep a part of the real images: the whole pipeline, and each of its stages."""

import click

from ray_jobs import compress as pipeline
from ray_jobs.budget import parse_bytes
from ray_jobs.command_line import command, given, options
from ray_jobs.convert import Conversion, convert
from ray_jobs.encode import Storage
from ray_jobs.options import Backbone, Compute, Data, Place, Selection
from ray_jobs.spend import Spend
from ray_jobs.spend import run as run_spending


@command()
@click.option("--out", required=True, metavar="PLACE", help="Folder, s3:// or gs:// for the compressed shards.")
@click.option(
    "--estimate", is_flag=True, help="Say what it will take in time, memory and bytes, and stop.  [default: off]"
)
@options(Data, Selection, Storage, Spend, Backbone, Compute, Place)
def compress(data, selection, storage, spend, backbone, compute, place, out, estimate):
    """Keep a part of the images: ingest, weights, extract, bins, score, sample, write, encode."""
    wanted = pipeline.Compression(data, backbone, selection, out, storage)
    if estimate:
        if spend.frontier:
            raise ValueError(
                "--estimate: leave --frontier out, and give --method and --backbone; its rule may choose any"
            )
        pipeline.tell_cost(wanted, compute, place, parse_bytes(spend.budget) if spend.budget else 0)
    elif spend.budget:
        run_spending(wanted, spend, compute, place, given())
    else:
        pipeline.run(wanted, compute, place)


@command()
@options(Conversion, Data, Compute, Place)
def ingest(conversion, data, compute, place):
    """Read and check shards; with --source, make them first from CIFAR, ImageFolder, Tiny-ImageNet or ImageNet."""
    if conversion.source:
        if data.data:
            raise ValueError("--source makes the shards that are read: leave --data out")
        data = Data(**{**data.__dict__, "data": tuple(convert(conversion))})
    pipeline.run(pipeline.Compression(data, Backbone(), Selection()), compute, place, "ingest")


@command()
@options(Data, Backbone, Compute, Place)
def weights(data, backbone, compute, place):
    """Get the backbone's weights: torchvision's, a file's, or by training on the data."""
    pipeline.run(pipeline.Compression(data, backbone, Selection()), compute, place, "weights")


@command()
@options(Data, Backbone, Compute, Place)
def extract(data, backbone, compute, place):
    """Read the features of every image, each decoded once."""
    pipeline.run(pipeline.Compression(data, backbone, Selection()), compute, place, "extract")


@command()
@options(Data, Selection, Backbone, Compute, Place)
def bins(data, selection, backbone, compute, place):
    """Cut the data set into bins by exact greedy GraphCut."""
    pipeline.run(pipeline.Compression(data, backbone, selection), compute, place, "bins")


@command()
@options(Data, Selection, Backbone, Compute, Place)
def score(data, selection, backbone, compute, place):
    """Score the bins for texture and diversity."""
    pipeline.run(pipeline.Compression(data, backbone, selection), compute, place, "score")


@command()
@options(Data, Selection, Backbone, Compute, Place)
def sample(data, selection, backbone, compute, place):
    """Choose the images: quotas, joint rounding, draws."""
    pipeline.run(pipeline.Compression(data, backbone, selection), compute, place, "sample")


@command()
@click.option("--out", required=True, metavar="PLACE", help="Folder, s3:// or gs:// for the compressed shards.")
@options(Data, Selection, Backbone, Compute, Place)
def write(data, selection, backbone, compute, place, out):
    """Write the subset as WebDataset shards; members keep their bytes and names."""
    pipeline.run(pipeline.Compression(data, backbone, selection, out), compute, place)
