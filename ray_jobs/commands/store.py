"""Jobs that store the images of any shards in another way, and restore what is missing."""

import click

from ray_jobs.command_line import command, options
from ray_jobs.encode import Storage
from ray_jobs.encode import command as run_encoding
from ray_jobs.fill import Filling
from ray_jobs.fill import run as run_filling
from ray_jobs.mae import Painting
from ray_jobs.mae import run as run_mae
from ray_jobs.options import Backbone, Compute, Data, Place


@command()
@click.option("--out", required=True, metavar="PLACE", help="Folder, s3:// or gs:// for the encoded shards.")
@options(Storage, Data, Backbone, Compute, Place)
def encode(storage, data, backbone, compute, place, out):
    """Store the images of any shards in another way: smaller, in JPEG or WebP, in few colours, without their dullest patches."""
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
