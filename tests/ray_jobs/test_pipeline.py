"""The pipeline on real images and a real cluster: resume, order, actors, kills, bad images; the same bytes throughout."""

import io
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from adq.container import pack
from adq.shards import tar_bytes
from ray_jobs import bins, compress, ingest
from ray_jobs.feature_cost import Looked
from ray_jobs.job import opened
from ray_jobs.options import Backbone, Compute, Data, Place, Selection
from tests.bench.kills import STAGES, begun, command, finish, kill_when, outputs
from tests.ray_jobs.conftest import CLASSES, CPU, members, real_samples, write_shard

BACKBONE = ("--backbone", "convnet-d3-w8", "--weights", "train:1", "--bins", "4")


def run(
    data: list[str], store: Path, out: Path, last: str = "write", compute: Compute | None = None, **options
) -> dict:
    selection = {"bins": 4} | {k: v for k, v in options.items() if k in Selection.__dataclass_fields__}
    more = {k: v for k, v in options.items() if k in Data.__dataclass_fields__}
    network = {k: v for k, v in options.items() if k in Backbone.__dataclass_fields__}
    backbone = Backbone(**({"backbone": "convnet-d3-w8", "weights": "train:1"} | network))
    wanted = compress.Compression(Data(data=tuple(data), **more), backbone, Selection(**selection), str(out))
    return dict(compress.run(wanted, compute or CPU, Place(store=str(store)), last))


@pytest.fixture(scope="module")
def calm(cluster, shards, tmp_path_factory) -> tuple[Path, Path, dict]:
    """An undisturbed run: its store, its output, the sha256 of all results."""
    work = tmp_path_factory.mktemp("calm")
    run([str(shards)], work / "store", work / "out")
    return work / "store", work / "out", outputs(work / "store", work / "out")


def test_members_are_byte_identical_to_the_source(calm, shards):
    kept, source = members(calm[1]), members(shards)
    assert len(kept) == 2 * 80
    assert all(source[name] == data for name, data in kept.items())
    assert (calm[1] / "classes.txt").read_text() == (shards / "classes.txt").read_text()
    summary = json.loads((calm[1] / ".tessera" / "manifest.json").read_text())["summary"]
    assert (summary["payload_bytes"], summary["source_payload_bytes"]) == (container(kept), container(source))


def container(found: dict[str, bytes]) -> int:
    """The size of some images and labels in one container."""
    files = [data for name, data in found.items() if name.endswith(".jpg")]
    labels = [int(data) for name, data in found.items() if name.endswith(".cls")]
    return len(pack(files, ["jpg"] * len(files), np.array(labels), CLASSES))


def test_running_again_does_no_work(calm, shards, capsys):
    store, out, before = calm
    times = {path: path.stat().st_mtime_ns for path in store.rglob("parts/*")}
    run([str(shards)], store, out)
    assert capsys.readouterr().out.count("done before") == len(STAGES)
    assert {path: path.stat().st_mtime_ns for path in store.rglob("parts/*")} == times
    assert outputs(store, out) == before


def test_an_estimate_reads_the_shards_alone_and_knows_the_sizes_of_features(calm, shards, tmp_path, capsys):
    backbone = Backbone("convnet-d3-w8", "train:1")
    wanted = compress.Compression(Data(data=(str(shards),)), backbone, Selection(), str(tmp_path / "out"))
    compress.tell_cost(wanted, CPU, Place(store=str(tmp_path / "runs")))
    said = capsys.readouterr().out
    size = json.loads((calm[1] / ".tessera/manifest.json").read_text())["summary"]["payload_bytes"]
    guess = re.search(r"payload +original: about ([\d.]+) kB\n", said)
    assert float(guess[1]) == pytest.approx(size / 1000, rel=0.1)
    assert re.search(
        r"cost +about \d+ s for features, from 1 extractor \(convnet-d3-w8 [\d,]+ images a second, decoding", said
    )
    assert "short training" not in said and re.search(r"\nstore +up to .* of features\nmemory +up to ", said)
    assert {path.name for path in (tmp_path / "runs").iterdir() if path.is_dir()} <= {"ingest", "mlflow-artifacts"}
    table = pq.read_table(next(calm[0].glob("extract/*/parts/*.parquet"))).to_pylist()
    looked = Looked(
        SimpleNamespace(device="cpu"), SimpleNamespace(side=32, classes=CLASSES, images=1), backbone, ["adq"]
    )
    row = next(row for row in table if row["error"] is None)
    assert looked.widths == (len(row["embedding"]), len(row["pooled"])) == (len(row["view"]), len(row["view_pooled"]))
    assert looked.stored == 4 * len(row["embedding"]) + 2 * sum(
        len(row[name]) for name in ("pooled", "view", "view_pooled")
    )


def test_order_and_number_of_actors_do_not_matter(calm, shards, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(calm[0] / "weights", store / "weights")
    data = sorted(map(str, shards.glob("*.tar")), reverse=True)
    run(data, store, tmp_path / "out", compute=replace(CPU, actors=2, graphcut_actors=2))
    assert outputs(store, tmp_path / "out") == calm[2]


@pytest.mark.parametrize("actors", [0, 2])
def test_global_bins_that_are_interrupted_go_on_from_their_picks(calm, shards, tmp_path, monkeypatch, capsys, actors):
    store = tmp_path / "store"
    for stage in ("ingest", "weights", "extract"):
        shutil.copytree(calm[0] / stage, store / stage)
    wanted = {"last": "bins", "scope": "global", "compute": replace(CPU, graphcut_actors=actors)}
    save = bins._Checkpoint.save

    def interrupted(self, picks) -> None:
        save(self, picks, every=0.0)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(bins._Checkpoint, "save", interrupted)
        run([str(shards)], store, tmp_path / "out", **wanted)
    capsys.readouterr()
    table = run([str(shards)], store, tmp_path / "out", **wanted)["bins"].table("bins")
    assert "goes on after" in capsys.readouterr().out
    assert not list(store.rglob("picks.npy"))
    straight = tmp_path / "straight"
    for stage in ("ingest", "weights", "extract"):
        shutil.copytree(calm[0] / stage, straight / stage)
    assert run([str(shards)], straight, tmp_path / "out", **wanted)["bins"].table("bins").equals(table)


def test_kills_in_stage_after_stage_leave_the_same_bytes(calm, shards, tmp_path):
    """One pipeline through the command line, killed in its stages in turn, and run to its end."""
    store, out = tmp_path / "store", tmp_path / "out"
    arguments = command([str(shards)], store, out, *BACKBONE, "--batch-size", "64", "--actors", "1")
    stages = ("extract", "ratios", "write")  # all nine: python -m tests.bench.kills
    killed = [stage for stage in stages if kill_when(arguments, begun(store, out, stage), limit=200)]
    finish(arguments)
    assert killed == list(stages)
    assert outputs(store, out) == calm[2]


def test_another_keep_ratio_runs_sample_and_write_alone(calm, shards, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(calm[0], store, ignore=shutil.ignore_patterns("mlflow*"))
    before = {path.parent for path in store.rglob("manifest.json")}
    one = run([str(shards)], store, tmp_path / "one", keep=0.2)
    new = {path.parent.parent.name for path in store.rglob("manifest.json") if path.parent not in before}
    assert new == {"sample"}
    assert one["write"].summary["images"] == 160
    ten, twenty = set(members(calm[1])), set(members(tmp_path / "one"))
    assert ten < twenty, "keep ratios are nested"


def test_alpha_zero_chooses_what_dq_chooses(calm, shards, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(calm[0], store, ignore=shutil.ignore_patterns("mlflow*"))
    keys = {}
    for name, options in {"adq": {"alpha": 0.0}, "dq": {"method": "dq"}, "full": {}}.items():
        keys[name] = run([str(shards)], store, tmp_path / name, "sample", **options)["sample"].table("subset")["key"]
    assert keys["adq"] == keys["dq"]
    assert keys["full"] != keys["dq"]


def test_every_method_keeps_the_same_number(calm, shards, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(calm[0], store, ignore=shutil.ignore_patterns("mlflow*"))
    for method in ("random", "graphcut", "dq"):
        for scope in ("class", "global"):
            done = run([str(shards)], store, tmp_path / "x", "sample", method=method, scope=scope, keep=0.25)
            table = done["sample"].table("subset")
            assert table.num_rows == 200
            quotas = done["sample"].table("quotas").to_pydict()
            assert sum(quotas["quota"]) == sum(quotas["drawn"]) == 200
            if method == "graphcut":
                assert set(table["bin"].to_pylist()) == {0}


@pytest.mark.parametrize("allocation", ["share", "code", "literal"])
def test_the_share_of_a_bin_is_what_is_then_rounded(calm, shards, tmp_path, allocation):
    store = tmp_path / "store"
    shutil.copytree(calm[0], store, ignore=shutil.ignore_patterns("mlflow*"))
    done = run([str(shards)], store, tmp_path / "x", "sample", allocation=allocation, balance="none")
    table = done["sample"].table("quotas").to_pandas().groupby("bin")
    wanted = table["share"].first() * table["size"].sum()
    assert np.abs(wanted - table["quota"].sum()).max() < 1 and table["share"].nunique().max() == 1


def test_another_member_as_the_image_is_another_data_set(cluster, tmp_path):
    left, right = (bytes(f"P6 4 4 255\n{side * 48}", "ascii") for side in "ab")  # of as many bytes, with one header
    members = [
        (f"{n}.{ext}", data) for n in range(2) for ext, data in (("left", left), ("right", right), ("cls", b"0"))
    ]
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    with opened(Place(store=str(tmp_path / "runs")), CPU, "test", ["ext"]) as job:
        contents = {
            ext: ingest.run(job, Data((str(tmp_path / "a.tar"),), image_ext=ext)).manifest.content
            for ext in ("left", "right", "left,png")
        }
    assert contents["left"] != contents["right"] and contents["left"] == contents["left,png"]


def test_undecodable_images_are_listed_then_left_out_without_extracting_again(cluster, tmp_path):
    samples = real_samples(120, 1)
    samples[7] = (samples[7][0], samples[7][1][:200], samples[7][2])
    samples[90] = (samples[90][0], b"not an image", samples[90][2])
    write_shard(tmp_path / "a.tar", samples[:60])
    write_shard(tmp_path / "b.tar", samples[60:])
    store, out = tmp_path / "store", tmp_path / "out"
    with pytest.raises(ValueError, match=r"2 images cannot be decoded(.|\n)*--skip-corrupt") as told:
        run([str(tmp_path)], store, out, weights=str(_weights(tmp_path)))
    assert samples[7][0] in str(told.value) and samples[90][0] in str(told.value)
    extracted = {path: path.stat().st_mtime_ns for path in (store / "extract").rglob("parts/*")}
    done = run([str(tmp_path)], store, out, weights=str(_weights(tmp_path)), skip_corrupt=True)
    assert {path: path.stat().st_mtime_ns for path in (store / "extract").rglob("parts/*")} == extracted
    assert done["bins"].summary["images"] == 118
    broken = {samples[7][0], samples[90][0]}
    assert not broken & set(done["sample"].table("subset")["key"].to_pylist())
    # A method that looks at no features does not wait for them to know which images are broken.
    fresh, everything = (
        tmp_path / "fresh",
        {"method": "random", "keep": 1.0, "weights": "train:1", "skip_corrupt": True},
    )
    done = run([str(tmp_path / "*.tar")], fresh, tmp_path / "random", **everything)
    assert set(done["sample"].table("subset")["key"].to_pylist()) == {key for key, _, _ in samples} - broken
    assert done["decode"].summary == {"images": 120, "undecodable": 2}
    assert not (fresh / "extract").exists() and not (fresh / "weights").exists()
    # Nor do one's own embeddings, which have a row for every image.
    np.save(tmp_path / "own.npy", np.random.default_rng(0).normal(size=(120, 6)).astype(np.float32))
    for method in ("dq", "herding"):
        own = {"method": method, "keep": 0.5, "embeddings": str(tmp_path / "own.npy"), "skip_corrupt": True}
        done = run([str(tmp_path / "*.tar")], fresh, tmp_path / method, **own)
        assert done["sample"].summary["images"] == 59
        assert not broken & set(done["sample"].table("subset")["key"].to_pylist())
    reasons = {
        path: [r["error"] for r in pq.read_table(path).to_pylist()] for path in (fresh / "decode").rglob("*.parquet")
    }
    for path in (store / "extract").rglob("parts/*.parquet"):
        assert [r["error"] for r in pq.read_table(path).to_pylist()] in reasons.values(), (
            "both say the same of every image"
        )


def _weights(folder: Path) -> Path:
    import torch

    from adq.models import build

    path = folder / "weights.pt"
    if not path.exists():
        torch.manual_seed(0)
        torch.save(build("convnet-d3-w8", 10, 32).state_dict(), path)
    return path


def test_keys_that_are_unique_per_shard_only(cluster, tmp_path):
    samples = real_samples(60)
    for n in (0, 1):
        mine = samples[30 * n : 30 * n + 30]
        write_shard(tmp_path / f"s{n}.tar", [(f"{i:03d}", image, label) for i, (_, image, label) in enumerate(mine)])
    with pytest.raises(ValueError, match=r"key '000' comes twice.*s0\.tar.*s1\.tar.*--key-prefix shard"):
        run([str(tmp_path)], tmp_path / "store", tmp_path / "out", method="random")
    run([str(tmp_path)], tmp_path / "store", tmp_path / "out", method="random", key_prefix="shard", keep=0.5)
    kept = members(tmp_path / "out")
    originals = {image for _, image, _ in samples}
    assert len(kept) == 60
    assert {data for name, data in kept.items() if name.endswith(".jpg")} < originals


def test_own_embeddings_need_no_extraction(cluster, shards, tmp_path):
    rows = np.random.default_rng(0).normal(size=(800, 6)).astype(np.float32)
    np.save(tmp_path / "own.npy", rows)
    done = run(
        [str(shards)], tmp_path / "store", tmp_path / "out", "bins", method="dq", embeddings=str(tmp_path / "own.npy")
    )
    assert "extract" not in done
    keys = done["bins"].table("bins")["key"]
    order = np.random.default_rng(1).permutation(800)
    buffer = io.BytesIO()
    import pyarrow as pa

    pq.write_table(pa.table({"key": keys.take(pa.array(order)), "embedding": list(rows[order])}), buffer)
    (tmp_path / "own.parquet").write_bytes(buffer.getvalue())
    other = run(
        [str(shards)],
        tmp_path / "store",
        tmp_path / "out",
        "bins",
        method="dq",
        embeddings=str(tmp_path / "own.parquet"),
    )
    assert other["bins"].table("bins") == done["bins"].table("bins")
    np.save(tmp_path / "short.npy", rows[:10])
    with pytest.raises(ValueError, match=r"short\.npy: shape \(10, 6\); expected \[800, d\]"):
        run(
            [str(shards)],
            tmp_path / "store",
            tmp_path / "out",
            "bins",
            method="dq",
            embeddings=str(tmp_path / "short.npy"),
        )


def test_data_of_the_same_names_sizes_and_times_in_another_folder_is_read(cluster, tmp_path):
    found = []
    for name, start in (("train", 0), ("val", 10)):
        (path := tmp_path / name / "000000.tar").parent.mkdir()
        write_shard(path, [(key, image, 0) for key, image, _ in real_samples(20)[start : start + 10]])
        path.write_bytes(path.read_bytes().ljust(30 * 10240, b"\0"))  # as long as each other
        os.utime(path, (0, 0))
        done = run([str(path)], tmp_path / "store", tmp_path / "out", "ingest")
        found.append(done["ingest"].table("index")["key"].to_pylist())
    assert len(found[0]) == 10 and not set(found[0]) & set(found[1])


def test_bad_input_fails_before_work(cluster, shards, tmp_path):
    cases = {
        r"cannot fill 801 bins": {"bins": 801},
        r"keeps none": {"keep": 0.0001},
        r"no images of class zebra": {"classes": str(_with_zebra(tmp_path))},
    }
    for message, options in cases.items():
        with pytest.raises(ValueError, match=message):
            run([str(shards)], tmp_path / "store", tmp_path / "out", method="dq", **options)
    with pytest.raises(ValueError, match=r"\d{2,3} images of the largest class cannot fill 200 bins"):
        run([str(shards)], tmp_path / "store", tmp_path / "out", method="adq", bins=200)
    assert not (tmp_path / "store" / "extract").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x.tar").write_bytes(tar_bytes([]))
    with pytest.raises(ValueError, match="holds other shards already"):
        run([str(shards)], tmp_path / "store", tmp_path / "full", method="random")


def _with_zebra(folder: Path) -> Path:
    path = folder / "classes.txt"
    path.write_text("".join(f"{n}\n" for n in [*map(str, range(10)), "zebra"]))
    return path
