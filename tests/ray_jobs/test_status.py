"""What a store holds, local and on S3: stages that are finished and such that are not, shards, MLflow's files."""

import time

import pytest
from click.testing import CliRunner

from ray_jobs.__main__ import main, start
from ray_jobs.stages import Stage
from ray_jobs.status import as_text, contents
from ray_jobs.store import Store


@pytest.fixture(params=["local", "s3"])
def store(request, tmp_path) -> Store:
    if request.param == "local":
        return Store.at(str(tmp_path / "runs"))
    return Store.at(f"{request.getfixturevalue('s3')}/{tmp_path.name}")


def filled(store: Store) -> tuple[Stage, Stage]:
    done, begun = Stage(store, "extract", 1, {"index": "a"}), Stage(store, "extract", 1, {"index": "b"})
    done.finish([done.commit(name, b"x" * 1000, 10, "bin") for name in ("a/0", "a/1")], {})
    begun.commit("a/0", b"x" * 5000, 10, "bin")
    store.write("bins/fedcba9876543210/picks.npy", b"x" * 9)  # of a GraphCut that was cut off
    store.write(f"{begun.folder}/parts/late-0123.bin", b"x" * 70)  # without its marker
    store.write("encoded/0123456789abcdef/train-000000.tar", b"x" * 400_000)
    store.write("encoded/0123456789abcdef/.tessera/encoded/train-000000.tar.parquet", b"x")
    store.write("mlflow.db", b"x" * 20)
    store.write("mlflow-artifacts/1/2/artifacts/picture.png", b"x" * 30)
    store.write("notes.txt", b"mine")
    return done, begun


def test_a_store_tells_its_stages_and_their_bytes(store):
    _, begun = filled(store)
    found = contents(store)
    assert {name: len(folders) for name, folders in found.folders.items()} == {"extract": 2, "encoded": 1, "bins": 1}
    unfinished = found.folders["extract"][begun.digest[:16]]
    assert (unfinished.finished, unfinished.markers) == (False, 1)
    marker = store.size(f"{begun.folder}/parts/a%2F0.json")
    assert unfinished.bytes == 5000 + 70 + marker
    text = as_text(store, found, time.time() + 120)
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    rows = {name: told[:4] for name, *told in table[2:]}
    assert list(rows) == ["encoded", "extract", "MLflow", "bins", "other files", "all"], "the largest first"
    assert rows["encoded"] == ["", "", "", "0.40 MB"] and rows["MLflow"][-1] == "0.1 kB"
    assert rows["extract"][:3] == ["1", "1", "3"]
    assert text.startswith(f"{store.root}\n") and "bins/fedcba9876543210  0 parts committed" in text
    assert f"{begun.folder}  1 part committed, last written 2 min " in text
    begun.finish(list(begun.committed().values()), {})
    assert begun.folder not in as_text(store, contents(store), time.time())


def test_of_many_unfinished_stages_the_latest_are_named(tmp_path):
    store = Store.at(str(tmp_path))
    for number in range(11):
        Stage(store, "training", 1, {"of": str(number)}).commit("a", b"x", 1, "bin")
    lines = as_text(store, contents(store), time.time()).splitlines()
    assert sum(line.startswith("training/") for line in lines) == 8 and lines[-1] == "... and 3 more"


def test_the_command_prints_it_and_changes_nothing(tmp_path):
    filled(Store.at(str(tmp_path / "runs")))
    before = sorted(tmp_path.rglob("*"))
    said = CliRunner().invoke(main, ["status", "--store", str(tmp_path / "runs")])
    assert said.exit_code == 0 and "| extract " in said.output and sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("there", [False, True])
def test_a_place_without_results_is_an_error(tmp_path, capsys, there):
    place = tmp_path / "runs"
    if there:
        place.write_text("no folder")
    with pytest.raises(SystemExit):
        start(["status", "--store", str(place)])
    assert f"Error: {place}: " in (said := capsys.readouterr().err) and "--store is the folder" in said
