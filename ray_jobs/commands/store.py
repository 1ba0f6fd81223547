"""Jobs that store the images of any shards in another way, and restore what is missing."""

import click

from ray_jobs.command_line import command, options
from ray_jobs.encode import Storage
from ray_jobs.encode import command as run_encoding
from ray_jobs.encoding_cost import tell
from ray_jobs.fill import Filling
from ray_jobs.fill import run as run_filling
from ray_jobs.mae import Painting
from ray_jobs.mae import run as run_mae
from ray_jobs.options import Backbone, Compute, Data, Place
from ray_jobs.pack import Packing
from ray_jobs.pack import run as run_packing
from ray_jobs.unpack import run as run_unpacking


@command()
@click.option("--out", required=True, metavar="PLACE", help="Folder, s3:// or gs:// for the encoded shards.")
@click.option("--estimate", is_flag=True, help="Say what it will take in time and bytes, and stop.  [default: off]")
@options(Storage, Data, Backbone, Compute, Place)
def encode(storage, data, backbone, compute, place, out, estimate):
    """Store the images of any shards in another way: smaller, in JPEG or WebP, in few colours, without their dullest patches."""
    if estimate:
        tell(storage, data, backbone, compute, place)
    else:
        run_encoding(storage, data, backbone, compute, place, out)


@command()
@click.option("--out", required=True, metavar="PLACE", help="Folder, s3:// or gs:// for the whole images.")
@options(Filling, Data, Compute, Place, without=("skip_corrupt", "graphcut_actors"))
def fill(filling, data, compute, place, out):
    """Fill the gaps of images whose patches were dropped, once: a cache to train on, made by a masked autoencoder or otherwise."""
    run_filling(filling, data, compute, place, out)


@command()
@click.option("--out", required=True, metavar="FILE", help="The weights file to write (.pt), or a folder for mae.pt.")
@options(Painting, Data, Compute, Place, without=("batch_size", "graphcut_actors"))
def mae(painting, data, compute, place, out):
    """Train a masked autoencoder on the data itself, which then fills dropped patches: a weights file and a figure."""
    run_mae(painting, data, compute, place, out)


@command()
@click.option(
    "--to", required=True, metavar="FILE",
    help="The file to write, local or on s3:// or gs://; NAME-000000.EXT and so on where the set takes several containers.",
)  # fmt: skip
@options(Packing, Data, Compute, Place, without=("skip_corrupt", "batch_size", "graphcut_actors"))
def pack(packing, data, compute, place, to):
    """Write any shards as one compact file, or as few as hold them: of the size that is reported as payload everywhere."""
    run_packing(to, packing, data, compute, place)


@command()
@click.option(
    "--from", "from_path", multiple=True, required=True, metavar="FILE",
    help="Files of pack or distill, several are one set; patterns as for --data.",
)  # fmt: skip
@click.option("--out", required=True, metavar="PLACE", help="Folder, s3:// or gs:// for the shards.")
@options(Place)
def unpack(place, from_path, out):
    """Write the images of compact files as shards, which `evaluate` and any loader reads."""
    run_unpacking(from_path, out, place)
