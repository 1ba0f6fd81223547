"""What leaves the house: PNG files and shards that other programs read, with exactly the pixels of the set."""

import io

import numpy as np
import pytest
from PIL import Image

from adq.images import decode as decode_image
from adq.index import Labels, scan
from adq.shards import DataSet, read_samples, tar_bytes
from palette.codec import decode, encode
from palette.export import members, png_bytes, samples, soft_label, write_pngs
from palette.quantize import median_cut, paint
from tests.palette.images import few_colours, noise

CLASSES = ["cat", "kůň", "dog"]


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(decode_image(data))


@pytest.fixture
def made() -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    palettes, indices = median_cut(np.concatenate([noise(4, 6, 9), few_colours(2, 1, 6, 9)]), 12)
    return palettes, indices, np.array([2, 0, 1, 1, 2, 0]), CLASSES


@pytest.mark.parametrize(("colors", "bits"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 4), (16, 4), (17, 8), (256, 8)])
def test_a_png_has_its_palette_and_as_few_bits_as_it_can(colors, bits):
    image = few_colours(1, colors, 16, 17)
    palettes, indices = median_cut(image, 256)
    data = png_bytes(palettes[0], indices[0])
    np.testing.assert_array_equal(pixels(data), image[0])
    assert data[24:26] == bytes([bits, 3])  # IHDR: bit depth, colour type 3: indexed
    assert Image.open(io.BytesIO(data)).mode == "P"


@pytest.mark.parametrize("soft", [False, True])
def test_classes_named_by_numbers_keep_their_images(soft, tmp_path):
    names = tuple(sorted(map(str, range(11))))  # 0, 1, 10, 2, ...: as ImageFolder orders them
    images = np.arange(11, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3)
    labels = np.eye(11) if soft else np.arange(11)
    made = images.reshape(11, 1, 3), np.zeros((11, 1, 1), np.uint8), labels, names
    told = Labels("cls", names)
    for number, (_, sample) in enumerate(samples(*made)):
        assert told.parse(sample["cls"], "") == number == pixels(sample["png"])[0, 0, 0]
    for number, path in enumerate(write_pngs(tmp_path, *made)):
        assert path.parent.name == f"{number:02d}-{names[number]}"


def test_shards_hold_exactly_the_pixels_of_the_set(made, tmp_path):
    data = tar_bytes(members(samples(*made)))
    (tmp_path / "distilled.tar").write_bytes(data)
    found = list(read_samples(DataSet(str(tmp_path), ("distilled.tar",)), "distilled.tar"))
    assert [sample["__key__"] for sample in found] == [f"distilled_{number:05d}" for number in range(6)]
    assert [int(sample["cls"]) for sample in found] == made[2].tolist()
    np.testing.assert_array_equal(np.stack([pixels(sample["png"]) for sample in found]), paint(made[0], made[1]))
    assert data == tar_bytes(members(samples(*made)))


def test_ingest_accepts_the_shards(made):
    for labels in (made[2], np.eye(3, dtype=np.float32)[made[2]]):
        data = tar_bytes(members(samples(made[0], made[1], labels, CLASSES, prefix="dm-k12")))
        found = scan(io.BytesIO(data), len(data), "distilled.tar", Labels(classes=tuple(CLASSES))).samples
        assert [sample.label for sample in found] == made[2].tolist()
        assert found[0].key == "dm-k12_00000"


def test_a_container_and_its_export_are_the_same_images(made):
    for (_, direct), (_, stored) in zip(samples(*made), samples(*decode(encode(*made))), strict=True):
        np.testing.assert_array_equal(pixels(direct["png"]), pixels(stored["png"]))
        assert direct["cls"] == stored["cls"]


def test_soft_labels_go_along_and_the_likeliest_is_the_class(made):
    soft = np.array([[0.1, 0.5, 0.4], [3, -1, 2.5], [0, 0, 0], [1, 2, 2], [0, 0, 1], [1, 0, 0]])
    found = list(samples(made[0], made[1], soft, CLASSES))
    assert [int(sample["cls"]) for _, sample in found] == [1, 0, 0, 1, 2, 0]
    read = np.stack([np.load(io.BytesIO(sample["npy"]), allow_pickle=False) for _, sample in found])
    assert read.dtype == np.dtype("<f2")
    np.testing.assert_array_equal(read, soft.astype(np.float16))
    np.testing.assert_array_equal(read, [soft_label(sample["npy"], 3) for _, sample in found])


def npy(values, kind: str = "<f2") -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array(values, dtype=kind), allow_pickle=kind == "O")
    return stream.getvalue()


def test_a_soft_label_is_read_in_each_width():
    for kind in ("<f2", "<f4", "<f8"):
        assert soft_label(npy([0.5, -2, 0], kind), 3).tolist() == [0.5, -2, 0]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no NumPy file"),
        (b"\x93NUMPY\x09\x00", "no NumPy file"),
        (npy([0, 1, 2])[:60], "no NumPy file"),
        (npy([1, 2, 3], "O"), r"\|O \[3\]; expected little endian floats \[3\]"),
        (npy([0, 1]), r"<f2 \[2\]; expected"),
        (npy([[0, 1, 2]]), r"<f2 \[1, 3\]"),
        (npy([0, 1, 2], "<i8"), "<i8"),
        (npy([0, 1, 2], ">f4"), ">f4"),
        (npy([0, 1, 2])[:-1], "truncated"),
        (npy([0, 1, 2]) + b"x", "more follows"),
        (npy([0, np.nan, 2]), "not finite"),
        (npy([0, np.inf, 2]), "not finite"),
    ],
)
def test_what_is_no_soft_label_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        soft_label(data, 3)


def test_pngs_lie_in_a_folder_for_each_class(made, tmp_path):
    written = write_pngs(tmp_path / "new" / "pngs", *made)
    assert [str(path.relative_to(tmp_path / "new" / "pngs")) for path in written[:3]] == [
        "2-dog/distilled_00000.png", "0-cat/distilled_00001.png", "1-kůň/distilled_00002.png",
    ]  # fmt: skip
    np.testing.assert_array_equal(np.stack([pixels(path.read_bytes()) for path in written]), paint(made[0], made[1]))


@pytest.mark.parametrize("name", ["../../outside", "/etc", "..", "", "a/b", "a\\b", "a\0b", "con:", "x" * 300, "\n"])
def test_no_class_name_leads_out_of_the_folder(made, tmp_path, name):
    classes = [name] * 2 + ["plain"] * 9
    written = write_pngs(tmp_path / "pngs", made[0], made[1], np.array([0, 1, 10, 1, 0, 2]), classes)
    assert len({path.parent for path in written}) == 4  # 0, 1, 2, 10: classes of one name stay apart
    for path in written:
        assert path.exists() and path.resolve().parent.parent == (tmp_path / "pngs").resolve()
    assert written[2].parent.name == "10-plain"
    assert [path.name for path in tmp_path.iterdir()] == ["pngs"]


def test_what_cannot_be_exported_is_named(made, tmp_path):
    with pytest.raises(ValueError, match="prefix"):
        list(samples(*made, prefix="a.b"))
    for wrong in (np.array([0, 1, 2, 3, 0, 0]), np.zeros(5, dtype=int)):
        with pytest.raises(ValueError, match="labels"):
            list(samples(made[0], made[1], wrong, CLASSES))
        with pytest.raises(ValueError, match="labels"):
            write_pngs(tmp_path / "none", made[0], made[1], wrong, CLASSES)
    assert not (tmp_path / "none").exists()
