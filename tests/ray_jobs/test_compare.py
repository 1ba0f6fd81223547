"""A comparison on a real cluster."""

import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from adq.container import pack
from adq.controls import CONTROLS
from adq.extractor import input_transform
from adq.features import load
from adq.models import build
from adq.training import TensorImages, correct
from ray_jobs import compare, compress, evaluate, frontier, ingest, rank, relabel, weights
from ray_jobs.evaluate import Evaluation
from ray_jobs.frontier import Budgets
from ray_jobs.frontier_rule import RULE
from ray_jobs.grid import Comparison, Grid, Selected, Variant
from ray_jobs.job import opened
from ray_jobs.options import Backbone, Data, Place, Selection
from ray_jobs.payload import payload_bytes
from ray_jobs.selections import Exchange, chosen_keys, run_export, run_import
from ray_jobs.store import parquet_table
from ray_jobs.tracking import open_tracker
from tests.bench import without_ray
from tests.bench.without_ray import read_split
from tests.ray_jobs.conftest import CLASSES, CPU, members, real_samples, tars, write_shard

METHODS = "random,dq,adq:alpha=1:bins=5,herding,el2n"
PERMUTED = "adq-permuted:alpha=1:bins=5"
OWN = "own"  # a set that no method selected
NETWORK = "convnet-d3-w8"
BACKBONE = Backbone(backbone=NETWORK, weights="train:1")


def grid(shards, out, **changes) -> Grid:
    sets = (f"{OWN}={shards}/part-000001.tar",)
    methods = f"{METHODS},{PERMUTED}"
    comparison = Comparison(methods, keep="0.05,0.1", sets=sets, extractors=1, without_controls=True)
    evaluation = Evaluation(NETWORK, seeds=2, steps=6, train_batch=32)
    data, test = Data(data=(f"{shards}/part-*[012].tar",)), (f"{shards}/part-000003.tar",)
    return Grid(replace(comparison, **changes), evaluation, data, Selection(), BACKBONE, test, str(out))


@pytest.fixture(scope="module")
def compared(cluster, shards, tmp_path_factory):
    """The folder of a comparison's store and results, and what it printed."""
    folder = tmp_path_factory.mktemp("compared")
    compare.run(grid(shards, folder / "out"), replace(CPU, actors=2), Place(store=str(folder / "runs")))
    return folder


def test_every_run_is_there_and_an_evaluation_of_written_shards_says_the_same(compared, shards):
    runs = parquet_table((compared / "out" / "runs.parquet").read_bytes())
    rows = runs.to_pylist()
    permutations = 3  # in each of two seeds, to be five or more
    assert len(rows) == (5 + permutations) * 2 * 2 + 2
    assert {row["method"] for row in rows} == {*METHODS.split(","), PERMUTED, OWN}
    permuted = [row for row in rows if (row["method"], row["keep"]) == (PERMUTED, 0.1)]
    assert (
        sorted(row["seed"] for row in permuted) == [0, 0, 0, 1, 1, 1]
        and len({row["selection"] for row in permuted}) == 6
    )
    assert f" {PERMUTED} " in (told := (compared / "out" / "table.md").read_text()) and " 2, 6 sets |" in told
    assert "permutation=" not in told and "permutations of the importance" not in told
    assert {row["images"] for row in rows if row["method"] != OWN} == {38, 75}
    own = [row for row in rows if row["method"] == OWN]
    assert [(row["images"], row["keep"], row["seed"]) for row in own] == [(250, 1 / 3, 0), (250, 1 / 3, 1)]
    keys = runs.schema.metadata[b"test_keys"].decode().split("\n")
    for row in rows:
        correct = np.unpackbits(np.frombuffer(row["correct"], np.uint8))[: len(keys)]
        assert row["top1"] == correct.mean()
    data, place = Data(data=(f"{shards}/part-*[012].tar",)), Place(store=str(compared / "runs"))
    out = compared / "written"
    selection = Selection(method="dq", keep=0.1, seed=0)
    compress.run(compress.Compression(data, BACKBONE, selection, str(out)), CPU, place)
    with opened(place, CPU, "again", ["again"]) as job:
        index = ingest.run(job, data)
        sets = {"written": ingest.run(job, Data(data=(str(out),)), False)}
        test = ingest.run(job, Data(data=(f"{shards}/part-000003.tar",)), False, "test")
        found = evaluate.evaluate(job, sets, test, Evaluation(NETWORK, seeds=1, steps=6, train_batch=32)).to_pylist()
    same = next(row for row in rows if (row["method"], row["keep"], row["seed"]) == ("dq", 0.1, 0))
    assert found[0]["top1"] == same["top1"]
    assert_told(compared / "out", "dq keep 0.1 seed 0", out, index)
    # ADQ's discriminator is the extractor's there as here, whatever the seed of the draw.
    adq = Selection(method="adq", alpha=1.0, bins=5, keep=0.1, seed=1)
    compress.run(compress.Compression(data, BACKBONE, adq, str(compared / "adq")), CPU, place)
    assert_told(compared / "out", "adq:alpha=1:bins=5 keep 0.1 seed 1", compared / "adq", index)
    second = Selection(method="adq-permuted", alpha=1.0, bins=5, keep=0.1, seed=1, permutation=2)
    compress.run(compress.Compression(data, BACKBONE, second, str(compared / "permuted")), CPU, place)
    assert_told(compared / "out", f"{PERMUTED}:permutation=2 keep 0.1 seed 1", compared / "permuted", index)
    files = {name: data for name, data in members(out).items() if name.endswith(".jpg")}
    labels = [int(members(out)[name.replace(".jpg", ".cls")]) for name in files]
    assert same["payload"] == found[0]["bytes"] == len(pack([*files.values()], ["jpg"] * 75, np.array(labels), CLASSES))
    assert same["tars"] == found[0]["tar_bytes"] == sum(path.stat().st_size for path in out.glob("*.tar"))


def assert_told(out, choice: str, written, index) -> None:
    told = chosen_keys(str(out), index, choice)
    assert told == chosen_keys(str(written), index) and len(told) == 75


def test_pytorch_alone_chooses_and_trains_the_same(compared, shards, one_thread):
    """tests.bench.without_ray is `compare` on a machine without Ray: the same images, and what they teach, image by image."""
    split = read_split(sorted(shards.glob("part-*[012].tar")), 32)
    test = read_split([shards / "part-000003.tar"], 32).images
    wanted, place = grid(shards, compared / "out"), Place(store=str(compared / "runs"))
    with opened(place, CPU, "again", ["again"]) as job:
        index = ingest.run(job, wanted.data)
    seen = {bins: without_ray.seen(split, without_ray.look(split, NETWORK, 1, bins, 0, "cpu")) for bins in (5, 10)}
    rows = parquet_table((compared / "out" / "runs.parquet").read_bytes()).to_pylist()
    bits = {(row["method"], row["keep"], row["seed"]): np.frombuffer(row["correct"], np.uint8) for row in rows}
    for method, keep, seed in (
        ("dq", 0.1, 1),
        ("adq:alpha=1:bins=5", 0.05, 0),
        ("herding", 0.1, 0),
        ("random", 0.05, 1),
    ):
        bins = 5 if "bins=5" in method else 10
        made = without_ray.choice(seen[bins], method.replace(":bins=5", ""), keep, seed)
        mine = np.flatnonzero(made.chosen)
        choice = f"{method} keep {keep:g} seed {seed}"
        assert [split.keys[row] for row in mine] == sorted(chosen_keys(str(compared / "out"), index, choice)), choice
        part = TensorImages(split.images.batch(mine), split.images.labels[mine])
        recipe = wanted.evaluation.recipe_for(NETWORK, 32)
        model = without_ray.trained(NETWORK, len(CLASSES), part, recipe, seed, "cpu")
        right = correct(model, test, np.arange(len(test)), input_transform(NETWORK, 32), "cpu")
        np.testing.assert_array_equal(np.packbits(right), bits[method, keep, seed], choice)


def test_a_selection_of_a_comparison_is_exported_by_its_name(compared, shards, tmp_path):
    wanted, place = grid(shards, compared / "out"), Place(store=str(compared / "runs"))
    to = str(tmp_path / "herding.csv")
    choice = "herding keep 0.05 seed 1"
    run_export(str(compared / "out"), to, Exchange(), wanted.data, CPU, place, choice)
    run_import(to, str(tmp_path / "again"), Exchange(), wanted.data, CPU, place)
    with opened(place, CPU, "again", ["again"]) as job:
        index, other = ingest.run(job, wanted.data), ingest.run(job, Data(data=wanted.test))
    assert chosen_keys(str(compared / "out"), index, choice) == chosen_keys(str(tmp_path / "again"), index)
    with pytest.raises(
        ValueError, match=r"is a comparison; name one .* --choice: 'random keep 0.05 seed 0', .* and 22 more"
    ):
        chosen_keys(str(compared / "out"), index)
    with pytest.raises(ValueError, match=r"--choice 'dq': no selection of .* has this name; there are 'random keep"):
        chosen_keys(str(compared / "out"), index, "dq")
    with pytest.raises(ValueError, match="compared selections of other shards"):
        chosen_keys(str(compared / "out"), other, choice)
    with pytest.raises(ValueError, match="is no --out folder of compare; leave out --choice"):
        chosen_keys(str(tmp_path / "again"), index, choice)


@pytest.mark.parametrize("method", ["random", "dq"])
def test_the_largest_selection_within_a_budget(compared, shards, method):
    wanted, place = grid(shards, compared / "out"), Place(store=str(compared / "runs"))
    with opened(place, CPU, "budget", ["budget"]) as job:
        index = ingest.run(job, wanted.data)
        selected, variant = Selected(job, index, wanted), Variant(method, Selection(method=method))
        for budget in (3000, 20_000):
            rows, found = selected.within(variant, budget, 1)
            _, more = selected.of(variant, (found.images + 1) / index.images, 1)
            assert found.payload == payload_bytes(index, rows.positions) <= budget < more.payload
        assert selected.within(variant, 1 << 30, 1)[1].images == index.images
        with pytest.raises(ValueError, match=r"900 bytes hold no image of .*: one takes [0-9,]+$"):
            selected.within(variant, 900, 1)


def test_cells_hold_their_trainings_in_mlflow_and_the_table_links_to_them(compared):
    client = (tracker := open_tracker(None, "tessera", str(compared / "runs"))).client
    every = client.search_runs([tracker.experiment_id], max_results=500)
    by_name = {run.info.run_name: run for run in every}
    cell = by_name[f"dq keep 0.1 {NETWORK}"]
    assert cell.data.params["method"] == "dq" and cell.data.params["keep"] == "0.1"
    assert 0 <= cell.data.metrics["top1"] <= 1 and cell.info.status == "FINISHED"
    permuted = by_name[f"{PERMUTED} keep 0.1 {NETWORK}"].info.run_id
    of_it = [run for run in every if run.data.tags.get("mlflow.parentRunId") == permuted]
    assert len(of_it) == len({run.info.run_name for run in of_it}) == 6
    below = [run for run in every if run.data.tags.get("mlflow.parentRunId") == cell.info.run_id]
    assert {run.info.run_name for run in below} == {f"dq keep 0.1 {NETWORK} seed {seed}" for seed in (0, 1)}
    assert np.mean([run.data.metrics["top1"] for run in below]) == pytest.approx(cell.data.metrics["top1"])
    table = (compared / "out" / "table.md").read_text()
    assert cell.info.run_id in table
    assert table.count("| convnet-d3-w8") == 13 + 6, "cells, and methods over both keep ratios"
    assert (compared / "out" / f"{NETWORK}.png").stat().st_size > 10_000
    told = by_name["compare"].data.tags["mlflow.note.content"]
    assert f"{100 * cell.data.metrics['top1']:.1f} ± " in told and told.count("| convnet-d3-w8") == 13 + 6
    adq = by_name[f"adq:alpha=1:bins=5 keep 0.1 {NETWORK}"].data
    assert adq.params["alpha"] == "1.0" and adq.params["bins"] == "5" and adq.metrics["moved"] > 0


def test_a_frontier_brings_the_controls_of_adq_too(compared, shards, tmp_path):
    wanted = grid(shards, tmp_path / "out", methods="adq:alpha=1:bins=5", without_controls=False, sets=())
    frontier.run(Budgets("20kB", "original"), wanted, replace(CPU, actors=2), Place(store=str(compared / "runs")))
    rows = parquet_table((tmp_path / "out" / "runs.parquet").read_bytes()).to_pylist()
    named = [f"{name}:alpha=1:bins=5" for name in ("adq", *CONTROLS)]
    assert {row["method"] for row in rows} == {"random", "dq", *named} and len(rows) == (2 + 3 + 3) * 2
    assert len({row["training"] for row in rows if row["method"] == PERMUTED}) == 6
    assert {row["moved"] > 0 for row in rows if row["method"] in named} == {True}
    assert all(row["moved"] == 0 for row in rows if row["method"] in ("random", "dq"))
    table = (tmp_path / "out" / "table.md").read_text()
    assert table.count(f"| {PERMUTED} as original ") == 1 and " moved |" in table and "permutation=" not in table
    leader = re.search(r"20 kB: (\S+) as original", table)[1]
    assert leader in ("random", "dq", "adq:alpha=1:bins=5")
    assert json.loads((tmp_path / "out" / RULE).read_text())["points"]


def test_again_trains_nothing_and_writes_the_same(compared, shards, monkeypatch, capsys):
    before = (compared / "out" / "runs.parquet").read_bytes()
    monkeypatch.setattr(compare, "pack", lambda *_: pytest.fail("trains again"))
    compare.run(grid(shards, compared / "out"), CPU, Place(store=str(compared / "runs")))
    said = capsys.readouterr().out
    assert "0 networks, 34 done before" in said and "| over random" in said
    assert (compared / "out" / "runs.parquet").read_bytes() == before


def test_a_recipe_that_is_edited_in_place_has_cells_of_its_own(cluster, shards, tmp_path):
    recipe, out = tmp_path / "mine.toml", tmp_path / "out"
    place = Place(store=str(tmp_path / "runs"))
    found = []
    for steps in (2, 8):
        recipe.write_text(f"steps = {steps}\nbatch_size = 32\nlr = 0.05\n")
        wanted = grid(shards, out, methods="random", keep="0.1", sets=())
        compare.run(replace(wanted, evaluation=Evaluation(NETWORK, seeds=1, recipe=str(recipe))), CPU, place)
        top1 = parquet_table((out / "runs.parquet").read_bytes())["top1"][0].as_py()
        tracker = open_tracker(None, "tessera", place.store)
        runs = tracker.client.search_runs([tracker.experiment_id])
        cells_of = [run for run in runs if run.info.run_name == f"random keep 0.1 {NETWORK}"]
        linked = next(run for run in cells_of if run.info.run_id in (out / "table.md").read_text())
        below = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == linked.info.run_id]
        assert [run.data.params["steps"] for run in below] == [str(steps)]
        assert linked.data.metrics["top1"] == top1
        found.append(linked.info.run_id)
    assert len(set(found)) == 2 == len(cells_of)


def test_all_methods_choose_among_the_images_that_can_be_decoded(cluster, tmp_path):
    samples = real_samples(160)
    broken = {samples[at][0] for at in (3, 40, 77)}
    samples = [(key, b"no image" if key in broken else image, label) for key, image, label in samples]
    for name, part in (("train", samples[:120]), ("test", samples[120:])):
        (tmp_path / name).mkdir()
        write_shard(tmp_path / name / "a.tar", part)
        (tmp_path / name / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    wanted = grid(tmp_path, tmp_path / "out", methods="random,dq:bins=2", keep="1", sets=())
    data, test = Data(data=(str(tmp_path / "train"),), skip_corrupt=True), (str(tmp_path / "test"),)
    evaluation = Evaluation(NETWORK, seeds=1, steps=2, train_batch=32)
    torch.save(build(NETWORK, 10, 32).state_dict(), tmp_path / "network.pt")
    backbone = replace(BACKBONE, weights=str(tmp_path / "network.pt"))
    wanted = replace(wanted, data=data, test=test, evaluation=evaluation, backbone=backbone)
    compare.run(wanted, CPU, Place(store=str(tmp_path / "runs")))
    rows = parquet_table((tmp_path / "out" / "runs.parquet").read_bytes()).to_pylist()
    assert [(row["method"], row["images"]) for row in rows] == [("random", 117), ("dq:bins=2", 117)]
    assert len({row["training"] for row in rows}) == 1, "the same images are the same training"
    np.save(tmp_path / "own.npy", np.random.default_rng(0).normal(size=(120, 6)).astype(np.float32))
    backbone = replace(backbone, embeddings=str(tmp_path / "own.npy"))
    comparison = replace(
        wanted.comparison, methods="dq:bins=2,support-points,d2:neighbours=3:gamma-reverse=2", keep="0.5"
    )
    own = replace(wanted, backbone=backbone, comparison=comparison, out=str(tmp_path / "own"))
    compare.run(own, CPU, Place(store=str(tmp_path / "runs")))
    rows = parquet_table((tmp_path / "own" / "runs.parquet").read_bytes()).to_pylist()
    assert [(row["method"], row["images"]) for row in rows] == [(m, 58) for m in comparison.methods.split(",")]


def test_an_estimate_trains_nothing(compared, shards, capsys):
    changes = {"methods": "random,adq", "estimate": True, "without_controls": False}
    wanted = grid(shards, compared / "estimate", **changes)
    compare.run(wanted, CPU, Place(store=str(compared / "runs")))
    said = capsys.readouterr().out
    assert "(8 sets x 2 keep ratios + 1 of --sets) x 2 seeds x 1 network: 34 trainings" in said and "cost" in said
    assert re.search(rf"\({NETWORK} [\d,]+ images a second, decoding [\d,]+ a thread, measured\)", said)
    assert not list((compared / "estimate").glob("*"))


@pytest.mark.parametrize(
    ("methods", "keep", "message"),
    [
        ("random,hearding", "0.1", "--method hearding: expected one of adq"),
        ("adq:beta=1", "0.1", "no setting 'beta'; known"),
        ("dq,herding:bins=5", "0.1", "--methods herding:bins=5: herding has no setting 'bins'; known: none"),
        ("adq:alpha=much", "0.1", "alpha is 'much', expected float"),
        ("adq:alpha=2", "0.1", "--alpha 2.0: expected 0"),
        (" , ", "0.1", "give at least one"),
        ("random", "0.1;0.2", "expected shares such as"),
        ("random", "0.00001", "keeps none; raise it"),
        ("random", ",", "--keep ,: expected at least one share"),
        ("random", "0.1,0.10000001", "differ in the seventh digit alone"),
        ("random,adq:bins=5000", "0.1", "of the largest class cannot fill 5000 bins; lower --bins"),
    ],
)
def test_what_cannot_be_compared_is_said(cluster, compared, shards, monkeypatch, methods, keep, message):
    monkeypatch.setattr(compare, "estimate", lambda *_: pytest.fail("said only after hours"))
    with pytest.raises(ValueError, match=message):
        wanted = grid(shards, compared / "wrong", methods=methods, keep=keep)
        compare.run(wanted, CPU, Place(store=str(compared / "runs")))


@pytest.mark.parametrize("sets", [("own",), ("=here",), ("random=here",), ("own=here", "own=here")])
def test_further_sets_need_names_of_their_own(shards, sets):
    with pytest.raises(ValueError, match="expected NAME=SHARDS, each once, and names that no method has"):
        _ = grid(shards, "out", sets=sets).named_sets
    with pytest.raises(ValueError, match=r"--sets adq-reversed=.*: is the name of a control of ADQ; give it another"):
        _ = grid(shards, "out", sets=("adq-reversed=here",)).named_sets


def test_a_small_set_is_ranked_beside_random_images_of_as_many_bytes(compared, shards, capsys):
    data, test = Data(data=(f"{shards}/part-*[012].tar",)), (f"{shards}/part-000003.tar",)
    options, place = Evaluation(NETWORK, seeds=2, steps=6, train_batch=32), Place(store=str(compared / "runs"))
    rank.run(f"{shards}/part-000003.tar", data, test, options, BACKBONE, CPU, place)
    said = capsys.readouterr().out
    rows = {line.split("|")[2].strip(): line for line in said.splitlines() if line.startswith(f"| {NETWORK}")}
    assert set(rows) == {
        rank.REAL, rank.DISTILLED, rank.RANDOM, rank.DISTILLED + rank.PLAIN, rank.RANDOM + rank.PLAIN,
    }  # fmt: skip
    sizes = {name: line.split("|")[4].strip() for name, line in rows.items()}
    assert sizes[rank.DISTILLED] == sizes[rank.DISTILLED + rank.PLAIN]
    random, small = (float(sizes[name].split()[0]) for name in (rank.RANDOM, rank.DISTILLED))
    assert 0.97 * small < random <= small
    assert "label-robust score" in said and "augmentation-robust score" in said
    with pytest.raises(ValueError, match="nothing to rank"):
        rank.run(f"{shards}/part-*[012].tar", data, test, options, BACKBONE, CPU, place)


def test_a_teacher_labels_images_and_a_set_is_ranked_by_such_labels(compared, shards, capsys):
    data, test, small = Data(data=(f"{shards}/part-*[012].tar",)), (f"{shards}/part-000003.tar",), compared / "soft"
    options, place = Evaluation(NETWORK, seeds=2, steps=6, train_batch=32), Place(store=str(compared / "runs"))
    relabel.run((f"{shards}/part-000001.tar",), data, BACKBONE, CPU, place, str(small))
    assert f" with hard ones, {tars(small):,} as tars\n" in capsys.readouterr().out
    found, source = members(small), members(shards, "part-000001.tar")
    assert {name: found[name] for name in found if not name.endswith(".npy")} == source
    keys = sorted(name.removesuffix(".jpg") for name in source if name.endswith(".jpg"))
    with opened(place, CPU, "teacher", ["teacher"]) as job:
        teacher = weights.run(job, ingest.run(job, data), BACKBONE)
    model = build(NETWORK, 10, 32)
    model.load_state_dict(torch.load(io.BytesIO(teacher.manifest.bytes("weights.pt")), weights_only=True))
    images = torch.stack([load(source[f"{key}.jpg"], teacher.transform) for key in keys])
    with torch.no_grad():
        logits = model.eval()(teacher.transform.normalise(images)).numpy()
    given = np.stack([np.load(io.BytesIO(found[f"{key}.npy"])) for key in keys])
    assert given.dtype == np.float16
    np.testing.assert_allclose(given, logits, rtol=2e-3, atol=2e-3)

    relabel.run((str(small),), data, BACKBONE, CPU, place, str(compared / "again"))
    assert members(compared / "again") == found, "labels take the place of others"

    capsys.readouterr()
    rank.run(str(small), data, test, replace(options, labels="soft"), BACKBONE, CPU, place)
    said = capsys.readouterr().out
    rows = {
        line.split("|")[2].strip(): line.split("|") for line in said.splitlines() if line.startswith(f"| {NETWORK}")
    }
    assert set(rows) == {
        rank.REAL, rank.DISTILLED + rank.HARD, rank.DISTILLED, rank.RANDOM, rank.DISTILLED + rank.PLAIN,
        rank.RANDOM + rank.PLAIN,
    }  # fmt: skip
    size = {name: float(row[4].split()[0]) for name, row in rows.items()}
    assert size[rank.DISTILLED] - size[rank.DISTILLED + rank.HARD] == pytest.approx(250 * (20 - 1) / 1000, abs=0.2)
    assert 0.97 * size[rank.DISTILLED] < size[rank.RANDOM] <= size[rank.DISTILLED]
    # The rows say what a training on those very labels says.
    with opened(place, CPU, "again", ["again"]) as job:
        sets = {"s": ingest.run(job, Data(data=(str(small),)), False)}
        held_out = ingest.run(job, Data(data=test), False, "test")
        both = evaluate.evaluate(job, sets, held_out, replace(options, labels="both")).to_pylist()
    for name, kind in ((rank.DISTILLED + rank.HARD, "s, hard labels"), (rank.DISTILLED, "s, soft labels")):
        top1 = np.mean([row["top1"] for row in both if row["set"] == kind])
        assert rows[name][6].split()[0] == f"{100 * top1:.1f}"
    torch.save(build(NETWORK, 7, 32).state_dict(), compared / "seven.pt")
    other, samples = replace(BACKBONE, weights=str(compared / "seven.pt")), set((compared / "runs/sample").iterdir())
    with pytest.raises(ValueError, match="its weights know 7 classes and the data have 10"):
        rank.run(str(small), data, test, replace(options, labels="soft", seeds=3), other, CPU, place)
    assert set((compared / "runs/sample").iterdir()) == samples, "said before anything is chosen"
    with pytest.raises(ValueError, match=r"--labels soft: .* has none"):
        rank.run(f"{shards}/part-000003.tar", data, test, replace(options, labels="soft"), BACKBONE, CPU, place)
    with pytest.raises(ValueError, match="--labels both: a set is ranked by one kind"):
        rank.run(str(small), data, test, replace(options, labels="both"), BACKBONE, CPU, place)


def test_images_that_a_teacher_cannot_see_are_named(compared, shards, tmp_path):
    samples = [("good", next(v for k, v in members(shards, "part-000003.tar").items() if k.endswith(".jpg")), 3)]
    write_shard(tmp_path / "a.tar", [*samples, ("bad", b"no image", 4)])
    (tmp_path / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    data, place = Data(data=(f"{shards}/part-*[012].tar",)), Place(store=str(compared / "runs"))
    with pytest.raises(ValueError, match=r"a\.tar: key 'bad'(.|\n)*or make shards without them"):
        relabel.run((str(tmp_path / "a.tar"),), data, BACKBONE, CPU, place, str(tmp_path / "out"))
