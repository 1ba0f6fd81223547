"""Bytes as the unit, on a real cluster: encoded shards, dropped patches, budgets, the frontier, mosaics."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from adq import container, patches
from adq.extractor import input_transform
from adq.images import decode
from adq.models import build
from adq.saliency import grad_cam, patch_saliency, whole_input
from adq.shards import tar_bytes
from palette import codec
from palette.encodings import Encoding, encode
from ray_jobs import __main__ as cli
from ray_jobs.accuracy import as_bytes
from ray_jobs.store import Store
from tests.ray_jobs.conftest import CLASSES, members, real_samples, tars, write_shard

pytestmark = pytest.mark.usefixtures("cluster")
ARCH = "convnet-d3-w16"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A store for all tests, and a network whose weights need no training."""
    folder = tmp_path_factory.mktemp("bytes")
    torch.manual_seed(0)
    torch.save(build(ARCH, 10, 32).state_dict(), folder / "network.pt")
    return folder


def run(place: Path, *arguments: object) -> str:
    network = (
        ["--backbone", ARCH, "--weights", place / "network.pt"] if arguments[0] not in ("fill", "evaluate") else []
    )
    command = [*arguments, *network, "--store", place / "store", "--actors", "1"]
    done = CliRunner().invoke(cli.main, [str(part) for part in command], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def files(folder: Path) -> dict[str, dict[str, bytes]]:
    """The samples of a folder's shards."""
    found: dict[str, dict[str, bytes]] = {}
    for name, data in members(folder).items():
        key, _, extension = name.partition(".")
        found.setdefault(key, {})[extension] = data
    return found


def test_encoded_shards_hold_the_same_keys_and_labels_in_fewer_bytes(place, shards, tmp_path):
    asked = ("encode", "--data", shards, "--encode", "webp:30", "--out", place / "webp")
    guess = re.search(
        r"payload +webp:30: about ([\d.]+) MB, stored in about \d+ s\n$", run(place, *asked, "--estimate")
    )
    assert not (place / "webp").exists()
    told = run(place, *asked)
    before, after = files(shards), files(place / "webp")
    assert list(after) == list(before) and {key: s["cls"] for key, s in after.items()} == {
        key: s["cls"] for key, s in before.items()
    }
    expected = encode([("jpg", sample["jpg"]) for sample in before.values()], Encoding.parse("webp:30"))
    assert [(next(iter(set(s) - {"cls"})), s[next(iter(set(s) - {"cls"}))]) for s in after.values()] == [
        (one.extension, one.data) for one in expected
    ]
    summary = Store.at(str(place / "webp")).read_json(".tessera/manifest.json")["summary"]
    labels = [int(sample["cls"]) for sample in after.values()]
    packed = container.pack([one.data for one in expected], [one.extension for one in expected], labels, CLASSES)
    assert summary["payload_bytes"] == len(packed) < summary["source_payload_bytes"]
    assert f"{100 * summary['payload_bytes'] / summary['source_payload_bytes']:.1f}%" in told
    assert float(guess[1]) == pytest.approx(summary["payload_bytes"] / 1e6, rel=0.1)
    assert "done before" in run(place, *asked)


def test_images_beside_other_images_are_encoded_and_read_back_alone(place, tmp_path):
    mask = io.BytesIO()
    Image.new("L", (32, 32)).save(mask, "PNG")
    source = [(f"{n:02d}", image, label) for n, (_, image, label) in enumerate(real_samples(40))]
    for folder, extension in (("jpg", "jpg"), ("img", "img")):
        (tmp_path / folder).mkdir()
        members = [
            (f"{key}.{kind}", data)
            for key, image, label in source
            for kind, data in ((extension, image), ("png", mask.getvalue()), ("cls", str(label).encode()))
        ]
        (tmp_path / folder / "a.tar").write_bytes(tar_bytes(members))
        (tmp_path / folder / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    asked = ("--data", tmp_path / "jpg", "--image-ext", "jpg")
    told = run(place, "encode", *asked, "--encode", "webp:5", "--out", tmp_path / "webp")
    assert "40 of 40 images are stored anew\n" in told
    assert all(
        set(s) == {"webp", "png", "cls"} and s["png"] == mask.getvalue() for s in files(tmp_path / "webp").values()
    )
    some = ("--method", "random", "--keep", "0.5", "--encode", "webp:5")
    run(place, "compress", *asked, *some, "--out", tmp_path / "subset")
    assert {tuple(sorted(s)) for s in files(tmp_path / "subset").values()} == {("cls", "png", "webp")}
    # An image that gains nothing keeps its extension, whatever that is.
    told = run(
        place, "encode", "--data", tmp_path / "img", "--image-ext", "img", "--encode", "webp:96", "--out", tmp_path / "kept"
    )  # fmt: skip
    after = files(tmp_path / "kept")
    kept = [key for key, sample in after.items() if "img" in sample]
    assert len(after) == 40 and len(kept) > 30 and all(after[key]["img"] == source[int(key)][1] for key in kept)
    anew = f"{40 - len(kept)} of 40 images are stored anew; {len(kept)} gain nothing and stay as they were (median side 32 px)"
    assert anew in told
    for command in (("encode", "--encode", "palette:4"), ("compress", "--keep", "0.5", "--encode", "palette:4")):
        with pytest.raises(
            ValueError, match=r"palette:4 makes images with the extension png, but 00\.png stands beside"
        ):
            run(place, *command, *asked, "--out", tmp_path / "no")
    with pytest.raises(ValueError, match=r"fill makes images with the extension png, but 00\.png stands beside"):
        run(place, "fill", "--filler", "mean", *asked, "--out", tmp_path / "no")


def test_images_too_large_for_patches_stay_as_they_are(place, tmp_path):
    samples = real_samples(20)
    wide = io.BytesIO()
    Image.new("RGB", (16_400, 8)).save(wide, "PNG")
    samples[3] = ("wide", wide.getvalue(), 3)
    write_shard(tmp_path / "a.tar", samples)
    (tmp_path / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    for order in ("grad-cam", "fill-error"):
        asked = ("--data", tmp_path / "a.tar", "--encode", "patches", "--saliency", order)
        run(place, "encode", *asked, "--out", tmp_path / order)
        after = files(tmp_path / order)
        assert after["wide"]["jpg"] == wide.getvalue() and sum("patches" in sample for sample in after.values()) > 5


def test_patches_of_a_subset_are_those_that_the_network_needs_least_and_every_reader_sees_whole_images(
    place, shards, tmp_path
):
    run(
        place,
        "compress",
        "--data",
        shards,
        "--method",
        "random",
        "--keep",
        "0.1",
        "--encode",
        "patches:50",
        "--out",
        tmp_path / "p",
    )
    source, kept = files(shards), files(tmp_path / "p")
    assert len(kept) == 80
    state = torch.load(place / "network.pt", weights_only=True)
    model, transform = build(ARCH, 10, 32), input_transform(ARCH, 32)
    model.load_state_dict(state)
    dropped = {key: sample for key, sample in kept.items() if "patches" in sample}
    assert len(dropped) > 20
    for key, sample in list(dropped.items())[:10]:
        found = patches.decode(sample["patches"])
        image = decode(source[key]["jpg"])
        cam = grad_cam(
            model, transform.normalise(whole_input(image, transform)[None]), torch.tensor([int(sample["cls"])])
        )
        scores = patch_saliency(cam, *found.mask.shape)[0].numpy()
        assert (~found.mask).sum() == 8 and scores[~found.mask].max() <= scores[found.mask].min() + 1e-6
        whole = np.asarray(decode(sample["patches"]))
        assert (whole[found.known] == found.pixels[found.known]).all() and whole[~found.known].std() > 0
    # The others cost no less without their patches, and are the source's files.
    assert all(kept[key]["jpg"] == source[key]["jpg"] for key in set(kept) - set(dropped))
    run(place, "fill", "--data", tmp_path / "p", "--filler", "mean", "--out", tmp_path / "filled")
    filled = files(tmp_path / "filled")
    assert set(filled) == set(kept)
    for key, sample in dropped.items():
        found, whole = patches.decode(sample["patches"]), np.asarray(Image.open(io.BytesIO(filled[key]["png"])))
        assert (whole[found.known] == found.pixels[found.known]).all()
        assert len(np.unique(whole[~found.known], axis=0)) == 1
    manifests = [
        Store.at(str(tmp_path / name)).read_json(".tessera/manifest.json")["summary"] for name in ("p", "filled")
    ]
    assert manifests[0]["payload_bytes"] == manifests[1]["payload_bytes"]


def test_a_frontier_fills_its_budgets_and_teaches_compress_how_to_spend_one(place, shards, tmp_path):
    out, test = tmp_path / "frontier", shards / "part-000003.tar"
    asked = (
        "frontier", "--data", shards / "part-000000.tar", "--classes", shards / "classes.txt", "--test", test, "--out", out,
        "--budgets", "9kB,1GB", "--encodings", "original,webp:10,palette:4", "--methods", "random", "--arch", ARCH, "--steps", "8",
        "--seeds", "2", "--sets", f"all={shards / 'part-000002.tar'}",
    )  # fmt: skip
    encoded = set(place.glob("store/encoded/*"))
    said = run(place, *asked, "--estimate")
    assert f"({ARCH} " in said and "networks" not in said and not list(out.glob("*"))
    assert "(1 method x 3 encodings x 2 budgets + 1 of --sets) x 2 seeds x 1 network: 14 trainings" in said
    guessed = {
        encoding: int(images)
        for encoding, images in re.findall(r"(\S+): (?:about )?[\d.]+ kB.*; 9 kB hold about (\d+), 1 GB hold all", said)
    }
    assert set(place.glob("store/encoded/*")) == encoded
    told = run(place, *asked)
    assert "chosen        14 sets" in told and "train         14 networks" in told
    rows = pq.read_table(out / "runs.parquet").to_pylist()
    assert len(rows) == 2 * (3 + 3 + 1) and all(row["payload"] <= row["budget"] for row in rows)
    small = [row for row in rows if row["budget"] == 9000]
    assert {row["encoding"] for row in small} == {"original", "webp:10", "palette:4"}
    assert all(row["payload"] > 0.97 * 9000 for row in small)
    count = {row["encoding"]: row["images"] for row in small}
    assert count["webp:10"] > count["original"]
    assert guessed == {encoding: pytest.approx(images, rel=0.15) for encoding, images in count.items()}
    # Where everything fits, there is nothing to choose.
    assert {(row["method"], row["images"]) for row in rows if row["budget"] > 9000} == {
        ("all images", 300),
        ("all", 200),
    }
    assert (
        "best" in (out / "table.md").read_text() and "9 kB: " in told and (out / f"{ARCH}.png").stat().st_size > 10_000
    )
    rule = json.loads((out / "frontier.json").read_text())
    assert rule["settings"]["backbone"] == ARCH and rule["settings"]["weights"] == str(place / "network.pt")
    leader = max((point for point in rule["points"] if point["budget"] == 9000), key=lambda point: point["mean"])
    spent = run(
        place, "compress", "--data", shards / "part-000000.tar", "--classes", shards / "classes.txt", "--budget", "9kB",
        "--frontier", out, "--out", tmp_path / "nine",
    )  # fmt: skip
    assert f"random as {leader['encoding']}" in spent
    held = files(tmp_path / "nine")
    labels = [int(sample["cls"]) for sample in held.values()]
    images = [next((e, d) for e, d in sample.items() if e != "cls") for sample in held.values()]
    if leader["encoding"] == "palette:4":
        opened = [Image.open(io.BytesIO(data)) for _, data in images]
        palettes = [np.resize(np.frombuffer(bytes(one.getpalette("RGB")), np.uint8), (4, 3)) for one in opened]
        payload = len(
            codec.encode(np.stack(palettes), np.stack([np.asarray(one) for one in opened]), np.array(labels), CLASSES)
        )
    else:
        payload = len(container.pack([data for _, data in images], [e for e, _ in images], labels, CLASSES))
    assert 0.97 * 9000 < payload <= 9000


def test_mosaics_are_shards_like_any_others(place, shards, tmp_path):
    told = run(
        place,
        "rded",
        "--data",
        shards,
        "--images-per-class",
        "2",
        "--candidates",
        "20",
        "--soft-labels",
        "--out",
        tmp_path / "r",
    )
    found = files(tmp_path / "r")
    assert len(found) == 20 and [int(sample["cls"]) for sample in found.values()] == [
        c for c in range(10) for _ in range(2)
    ]
    assert all(decode(sample["webp"]).size == (32, 32) for sample in found.values())
    assert "20 mosaics, 2 a class" in told and f" bytes payload, {tars(tmp_path / 'r'):,} as tars\n" in told
    model, transform = build(ARCH, 10, 32), input_transform(ARCH, 32)
    model.load_state_dict(torch.load(place / "network.pt", weights_only=True))
    logits = np.stack([np.load(io.BytesIO(sample["npy"])) for sample in found.values()])
    seen = torch.stack(
        [torch.from_numpy(np.array(decode(sample["webp"]))).permute(2, 0, 1) for sample in found.values()]
    )
    with torch.no_grad():
        again = model.eval()(transform.normalise(seen)).numpy()
    assert logits.dtype == np.float16 and np.corrcoef(logits.ravel(), again.ravel())[0, 1] > 0.9


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (["encode", "--encode", "gif:3"], "none of original"),
        (["compress", "--budget", "3 apples"], "a budget of"),
        (["compress", "--frontier", "/nowhere"], "give that, too"),
        (["fill", "--filler", "mae"], "--mae FILE goes with"),
        (["rded", "--encode", "resize:8+webp:5"], "mosaics are stored as"),
    ],
)
def test_what_cannot_be_is_said_at_once(command, why, tmp_path):
    with pytest.raises(ValueError, match=why):
        CliRunner().invoke(
            cli.main, [*command, "--data", "x.tar", "--out", str(tmp_path / "o")], catch_exceptions=False
        )


def test_a_network_of_other_classes_cannot_rank_patches(place, shards, tmp_path):
    torch.save(build(ARCH, 7, 32).state_dict(), place / "seven.pt")
    command = [
        "encode",
        "--data",
        shards,
        "--encode",
        "patches:25",
        "--backbone",
        ARCH,
        "--weights",
        place / "seven.pt",
    ]
    command += ["--out", tmp_path / "o", "--store", place / "store"]
    with pytest.raises(ValueError, match="know 7 classes and the data have 10"):
        CliRunner().invoke(cli.main, [str(part) for part in command], catch_exceptions=False)


def test_shards_of_two_folders_keep_theirs_and_are_told_as_they_can_be_given(place, tmp_path):
    samples = real_samples(8)
    for folder, some in (("a", samples[:4]), ("b", samples[4:])):
        (tmp_path / folder).mkdir()
        write_shard(tmp_path / folder / "part.tar", some)
    (tmp_path / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    out, data = tmp_path / "out", ("--data", tmp_path / "a", "--data", tmp_path / "b")
    told = run(place, "encode", *data, "--encode", "original", "--out", out)
    assert f"shards   {out}/a {out}/b\n" in told
    made = ("--data", out / "a", "--data", out / "b")
    told = run(place, "fill", *made, "--filler", "mean", "--out", tmp_path / "whole")
    assert f"shards   {tmp_path}/whole/a {tmp_path}/whole/b\n" in told
    payload = Store.at(str(out)).read_json(".tessera/manifest.json")["summary"]["payload_bytes"]
    assert (
        f"8 images, {as_bytes(payload)} payload, of the patches, {as_bytes(tars(tmp_path / 'whole'))} as tars\n" in told
    )
    assert {key for folder in "ab" for key in files(tmp_path / "whole" / folder)} == {key for key, *_ in samples}


def test_damaged_images_are_named_or_left_out(place, tmp_path):
    samples = real_samples(30)
    samples[4] = ("damaged", samples[4][1][:100], 0)
    write_shard(tmp_path / "a.tar", samples)
    write_shard(tmp_path / "b.tar", [("last", b"\xff\xd8 nothing", 1)])  # no image of this shard can be decoded
    (tmp_path / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    data = tmp_path / "*.tar"
    command = ("encode", "--data", data, "--encode", "patches:50", "--out", tmp_path / "o")
    with pytest.raises(
        ValueError, match=r"cannot be decoded:\n  a\.tar: key 'damaged': .*Truncated(.|\n)*--skip-corrupt"
    ):
        run(place, *command)
    run(place, *command, "--skip-corrupt")
    assert sorted(path.name for path in (tmp_path / "o").glob("*.tar")) == ["a.tar"]
    good = {key for key, _, _ in samples} - {"damaged"}
    assert set(files(tmp_path / "o")) == good
    copy = ("encode", "--data", data, "--encode", "original", "--out")
    run(place, *copy, tmp_path / "copied")
    assert set(files(tmp_path / "copied")) == {*good, "damaged", "last"}, "as they are, nothing is decoded"
    with pytest.raises(ValueError, match="another command"):
        run(place, *copy, tmp_path / "copied", "--skip-corrupt")
    told = run(place, *copy, tmp_path / "sound", "--skip-corrupt")
    assert "all as they were; 2 that cannot be decoded are left out\n" in told
    assert files(tmp_path / "sound") == {key: s for key, s in files(tmp_path / "copied").items() if key in good}
    assert Store.at(str(tmp_path / "sound")).read_json(".tessera/manifest.json")["summary"]["undecodable"] == 2
    spend = ("compress", "--data", data, "--method", "random", "--encode", "webp:20", "--budget", "1MB")
    run(place, *spend, "--skip-corrupt", "--out", tmp_path / "all")
    assert set(files(tmp_path / "all")) == good
    with pytest.raises(ValueError, match="key 'damaged'"):
        run(place, *command)
