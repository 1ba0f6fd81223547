"""Labels of an index: numbers, names and JSON fields; what is no label is named with its key."""

import itertools
import json

import pytest

from adq.index import Labels, class_texts
from adq.shards import tar_bytes
from tests.adq.shard_bytes import JPEG, members, read, refused, sample


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_missing_label_is_refused(at):
    given = [sample("a"), sample("b"), sample("c")]
    key = given[at][0][0][0]
    given[at] = given[at][:1]
    refused(tar_bytes(itertools.chain(*given)), repr(key), "no label", "--label")


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_missing_image_is_refused(at):
    given = [sample("a"), sample("b"), sample("c")]
    key = given[at][0][0][0]
    given[at] = given[at][1:]
    refused(tar_bytes(itertools.chain(*given)), repr(key), "no image", "--image-ext")


def test_two_images_are_refused_unless_the_extension_is_given():
    given = tar_bytes([*sample("a"), ("a.png", JPEG)])
    refused(given, "'a'", "2 images", "a.jpg, a.png", "--image-ext")
    assert read(given, image_ext=("png",)).samples[0].key == "a"


def test_labels_outside_the_classes_are_refused():
    three = Labels(classes=("cat", "dog", "eel"))
    assert [s.label for s in members(sample("a", "0"), sample("b", "2"), labels=three).samples] == [0, 2]
    refused(tar_bytes(sample("a", "3")), "'a'", "3", "0 to 2", "--classes", labels=three)
    refused(tar_bytes(sample("a", "-1")), "'a'", "-1", labels=three)
    refused(tar_bytes(sample("a", "-1")), "'a'", "-1")


@pytest.mark.parametrize("label", ["", "cow", "1.5", "1e3", "1_0", "1 2", b"\xff\xfe\x00", "nan", "\u0661", "9" * 30])
def test_a_label_that_is_no_number_is_refused(label):
    refused(tar_bytes(sample("a", label)), "'a'", "label")


@pytest.mark.parametrize("label", ["7", " 7\n", "7\r\n", "007", "+7"])
def test_a_number_may_have_white_space_around_it(label):
    assert members(sample("a", label)).samples[0].label == 7


@pytest.mark.parametrize(
    "names", [tuple(sorted(map(str, range(12)))), tuple(map(str, range(1, 13))), ("cat", "1", "dog")]
)
def test_classes_named_by_numbers_are_written_so_that_they_are_read_back(names):
    labels = Labels("cls", names)
    assert [labels.parse(text.encode(), "") for text in class_texts(names)] == list(range(len(names)))
    assert class_texts(("cat", "7", "dog")) == ["0", "1", "2"], "no class has the number 7"


@pytest.mark.parametrize("value", [7, "7"])
def test_a_number_in_json_is_the_class_of_that_name_too(value):
    labels = Labels("json:y", ("5", "7", "0", "1"))
    assert labels.parse(json.dumps({"y": value}).encode(), "") == 1
    assert Labels("json:y", ("cat", "dog")).parse(b'{"y": 1}', "") == 1


def test_a_number_of_more_classes_than_a_container_holds_is_refused():
    assert Labels().parse(b"65534", "") == 65534
    with pytest.raises(ValueError, match=r"x: label 65535 is outside the classes \(0 to 65,534\); see --classes"):
        Labels().parse(b"65535", "x")


def test_class_names_are_labels():
    names = Labels(classes=("cat", "white shark", "10"))
    found = members(sample("a", "white shark\n"), sample("b", "cat"), sample("c", "10"), sample("d", "1"), labels=names)
    assert [s.label for s in found.samples] == [1, 0, 2, 1]
    refused(tar_bytes(sample("a", "Cat")), "'a'", "'Cat'", "neither a number nor a class name", labels=names)


def with_json(value: object) -> list[tuple[str, bytes]]:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return [("a.jpg", JPEG), ("a.json", data)]


@pytest.mark.parametrize(
    ("field", "value"),
    [("label", {"label": 1}), ("label", {"label": "1"}), ("label", {"label": "dog"}),
     ("a.b.c", {"a": {"b": {"c": 1, "d": 2}}})],
)  # fmt: skip
def test_a_json_field_nested_or_not(field, value):
    found = members(with_json(value), labels=Labels(f"json:{field}", ("cat", "dog")))
    assert found.samples[0].label == 1


def test_a_sample_without_json_is_read_by_its_cls():
    names = Labels("json:label", ("cat", "dog"))
    both = [("c.jpg", JPEG), ("c.cls", b"0"), ("c.json", b'{"label": "dog"}')]
    found = members([*with_json({"label": "dog"}), *sample("b", "cat"), *both], labels=names)
    assert [one.label for one in found.samples] == [1, 0, 1], "where both are there, json counts"
    refused(tar_bytes(sample("a", "cow")), "'a'", "'cow'", labels=names)
    refused(tar_bytes([*both, ("d.jpg", JPEG)]), "'d'", "no label (.json member)", labels=names)


@pytest.mark.parametrize(
    "value",
    [{}, {"a": 1}, {"a": {"c": 1}}, {"a": [1]}, [1], 1, None, b"", b"{broken", b"\xff\xff", b"[" * 100_000],
)  # fmt: skip
def test_a_json_member_without_the_field_is_refused(value):
    refused(tar_bytes(with_json(value)), "'a'", "'a.b'", "--label", labels=Labels("json:a.b"))


@pytest.mark.parametrize("value", [None, True, 1.5, [1], {"x": 1}, "cow", "", 10**30])
def test_a_json_field_that_is_no_label_is_refused(value):
    refused(tar_bytes(with_json({"y": value})), "'a'", "label", labels=Labels("json:y"))


@pytest.mark.parametrize("source", ["", "json", "json:", "cls:x", "txt", "json:a:b"])
def test_another_place_of_labels_is_an_error_that_names_the_option(source):
    with pytest.raises(ValueError, match="--label"):
        Labels(source)
