"""Listings of small data sets with the keys that real ones have."""

import hashlib
import io

import numpy as np

from ray_jobs.orders import Listing


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def a_listing(images: dict[str, str], ext: str = "jpg", classes: tuple[str, ...] | None = None) -> Listing:
    """A data set of {key: class}."""
    classes = classes or tuple(sorted(set(images.values())))
    keys = tuple(sorted(images, key=str.encode))
    labels = tuple(classes.index(images[key]) for key in keys)
    return Listing(keys, labels, tuple(f"{key}.{ext}" for key in keys), tuple(map(digest, keys)), classes)


def cifar(count: int = 40, split: str = "train") -> Listing:
    return a_listing({f"{split}_{n:05d}": f"class{n % 3}" for n in range(count)}, "png")


def imagenet() -> Listing:
    ids = ("n01440764", "n02102040", "n03000684")
    names = [(f"{wnid}_{n}", wnid) for wnid in ids for n in (1, 2, 10, 100, 10026)]
    return a_listing(dict([*names, ("ILSVRC2012_val_00000293", ids[0])]), "jpeg")


def photos() -> Listing:
    names = ("cat/a", "cat/a-1", "cat/sub/z", "cat/x,y", "dog/a", 'dog/"q"', "dog/b b", "v1_0/a")
    return a_listing({key: {"v1_0": "v1.0"}.get(key.partition("/")[0], key.partition("/")[0]) for key in names})


def npy(array: np.ndarray) -> bytes:
    """What np.save writes."""
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()
