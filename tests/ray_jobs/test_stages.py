"""Stages: nothing counts because its name exists; a result is found again exactly when nothing that makes it has changed."""

import dataclasses
import itertools
from pathlib import Path

import pyarrow as pa
import pytest

from ray_jobs.stages import Part, Stage
from ray_jobs.store import Store, sha256


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(
        Store.at(str(tmp_path)), "extract", 3, {"index": "aa", "weights": "bb"}, {"bins": 10, "scope": "class"}
    )


def parts_folder(stage: Stage) -> Path:
    return Path(stage.store.root) / stage.folder / "parts"


def test_the_digest_does_not_depend_on_the_order_of_dictionaries(stage):
    turned = dataclasses.replace(
        stage, inputs={"weights": "bb", "index": "aa"}, config={"scope": "class", "bins": 10}, store=Store("/elsewhere")
    )
    assert turned.digest == stage.digest


@pytest.mark.parametrize(
    "change",
    [{"name": "bins"}, {"version": 4}, {"inputs": {"index": "ab", "weights": "bb"}}, {"inputs": {"index": "aa"}},
     {"config": {"bins": 11, "scope": "class"}}, {"config": {"bins": "10", "scope": "class"}}, {"config": {"bins": 10}}],
)  # fmt: skip
def test_the_digest_changes_with_everything_that_makes_a_result(stage, change):
    other = dataclasses.replace(stage, **change)
    assert other.digest != stage.digest and other.folder != stage.folder


def test_inputs_and_configuration_do_not_mix(stage):
    swapped = dataclasses.replace(stage, inputs=stage.config, config=stage.inputs)
    assert swapped.digest != stage.digest


def test_a_committed_part_is_found_and_read(stage):
    part = stage.commit("shard/a.tar", b"some bytes", 7, "bin")
    assert part == Part("shard/a.tar", part.path, 10, 7, sha256(b"some bytes"))
    assert part.sha256[:16] in part.path and part.path.endswith(".bin")
    assert stage.committed() == {"shard/a.tar": part}
    assert stage.read(part) == b"some bytes"


def test_a_part_without_its_marker_does_not_count(stage):
    part = stage.commit("a", b"bytes", 1, "bin")
    (parts_folder(stage) / "a.json").unlink()
    assert stage.store.size(part.path) == 5 and stage.committed() == {}


def test_a_marker_whose_file_is_gone_does_not_count(stage):
    part, other = stage.commit("a", b"bytes", 1, "bin"), stage.commit("b", b"other", 1, "bin")
    stage.store.remove(part.path)
    assert stage.committed() == {"b": other}


@pytest.mark.parametrize("data", [b"", b"byte", b"bytes and more"])
def test_a_marker_whose_file_has_another_size_does_not_count(stage, data):
    part = stage.commit("a", b"bytes", 1, "bin")
    stage.store.write(part.path, data)
    assert stage.committed() == {}


def test_a_write_that_dies_before_the_marker_commits_nothing(stage, monkeypatch):
    def die(*_args):
        raise OSError("killed")

    monkeypatch.setattr(Store, "write_json", die)
    with pytest.raises(OSError, match="killed"):
        stage.commit("a", b"bytes", 1, "bin")
    assert stage.committed() == {}


def test_parts_with_like_names_are_kept_apart(stage):
    given = {"a/b": b"1", "a__b": b"2", "a%2Fb": b"3", "a": b"{}", "a.json": b"[]", "kůň 馬": b"4"}
    for name, data in given.items():
        stage.commit(name, data, 1, "bin")
    found = stage.committed()
    assert {name: stage.read(part) for name, part in found.items()} == given


def test_two_writers_of_one_part_do_no_harm(stage):
    first, second = stage.commit("a", b"one", 1, "bin"), stage.commit("a", b"two", 1, "bin")
    assert stage.committed() == {"a": second}
    assert stage.read(first) == b"one" and stage.read(second) == b"two"  # neither overwrote the other's bytes


def test_an_altered_part_is_an_error_that_says_what_to_do(stage):
    part = stage.commit("a", b"bytes", 1, "bin")
    stage.store.write(part.path, b"bytez")
    with pytest.raises(ValueError, match="sha256 differs") as caught:
        stage.read(part)
    assert part.path in str(caught.value) and f"remove {stage.store.path(stage.folder)}" in str(caught.value)
    manifest = stage.finish([part], {})
    with pytest.raises(ValueError, match="sha256 differs"):
        manifest.bytes("a")


def test_a_stage_without_a_manifest_is_unfinished(stage):
    assert stage.manifest() is None
    stage.commit("a", b"bytes", 1, "bin")
    assert stage.manifest() is None


def test_run_facts_alone_do_not_finish_a_stage(stage, monkeypatch):
    part = stage.commit("a", b"bytes", 1, "bin")
    real = Store.write_json

    def die_at_the_manifest(self, name, value):
        if name.endswith("manifest.json"):
            raise OSError("killed")
        real(self, name, value)

    monkeypatch.setattr(Store, "write_json", die_at_the_manifest)
    with pytest.raises(OSError, match="killed"):
        stage.finish([part], {})
    assert stage.manifest() is None and stage.committed() == {"a": part}


def test_a_finished_stage_is_found_again(stage):
    given = [stage.commit(name, name.encode(), 1, "bin") for name in ("b", "a/2", "a/1")]
    finished = stage.finish(given, {"images": 3, "share": 0.5}, {"seconds": 4.0})
    found = dataclasses.replace(stage).manifest()
    assert found == finished
    assert [part.name for part in found.parts] == ["a/1", "a/2", "b"]
    assert found.bytes("a/2") == b"a/2" and found.summary == {"images": 3, "share": 0.5}
    facts = stage.run_facts()
    assert facts["seconds"] == 4.0 and facts["host"] and "ray" in facts["versions"]


def test_a_finished_stage_is_not_another_version_or_configuration(stage):
    stage.finish([stage.commit("a", b"bytes", 1, "bin")], {})
    assert dataclasses.replace(stage, version=4).manifest() is None
    assert dataclasses.replace(stage, config={}).manifest() is None


def test_a_manifest_of_another_digest_in_the_folder_does_not_count(stage):
    other = dataclasses.replace(stage, version=4)
    other.finish([], {})
    value = stage.store.read_json(f"{other.folder}/manifest.json")
    stage.store.write_json(f"{stage.folder}/manifest.json", value)
    assert stage.manifest() is None


def test_a_finished_stage_that_lost_a_part_is_unfinished(stage):
    given = [stage.commit(name, b"bytes", 1, "bin") for name in ("a", "b")]
    stage.finish(given, {})
    stage.store.remove(given[1].path)
    assert stage.manifest() is None and list(stage.committed()) == ["a"]


def test_the_content_depends_on_the_parts_and_on_nothing_else(stage):
    given = [stage.commit(name, name.encode(), 1, "bin") for name in ("c", "a", "b")]
    contents = {stage.finish(list(order), {}).content for order in itertools.permutations(given)}
    other = dataclasses.replace(stage, config={"bins": 99})
    same = [other.commit(name, name.encode(), 1, "bin") for name in ("a", "b", "c")]
    contents.add(other.finish(same, {"images": 5}, {"seconds": 1}).content)
    assert len(contents) == 1
    changed = [*given[:2], stage.commit("b", b"other", 1, "bin")]
    renamed = [*given[:2], stage.commit("d", b"b", 1, "bin")]
    assert len(contents | {stage.finish(parts, {}).content for parts in (changed, renamed, given[:2])}) == 4


def test_time_host_and_versions_are_not_in_the_manifest(stage):
    part = stage.commit("a", b"bytes", 1, "bin")
    path = f"{stage.folder}/manifest.json"
    stage.finish([part], {}, {"seconds": 1})
    first = stage.store.read(path)
    stage.finish([part], {}, {"seconds": 2})
    assert stage.store.read(path) == first and stage.store.root.encode() not in first


def test_tables_of_a_stage_in_the_order_of_the_manifest(stage):
    given = [stage.commit_table(f"shard/{n}", pa.table({"n": [n], "square": [n * n]})) for n in (2, 0, 1)]
    extra = stage.commit("weights", b"no table", 1, "pt")
    manifest = stage.finish([extra, *given], {})
    assert manifest.tables().to_pydict() == {"n": [0, 1, 2], "square": [0, 1, 4]}
    assert manifest.tables(["square"]).to_pydict() == {"square": [0, 1, 4]}
    assert manifest.table("shard/1").to_pydict() == {"n": [1], "square": [1]}


def test_a_stage_on_s3(s3, stage):
    remote = dataclasses.replace(stage, store=Store.at(f"{s3}/stages"))
    part = remote.commit("shard/a", b"bytes", 1, "bin")
    assert remote.manifest() is None and remote.committed() == {"shard/a": part}
    assert remote.finish([part], {}) == remote.manifest()
    assert (remote.folder, part.sha256) == (stage.folder, stage.commit("shard/a", b"bytes", 1, "bin").sha256)
    remote.store.remove(part.path)
    assert remote.manifest() is None and remote.committed() == {}
