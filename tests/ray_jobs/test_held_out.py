"""What must hold of test images, on drawn ones."""

import pytest

from ray_jobs import held_out
from ray_jobs.evaluate import Evaluation
from ray_jobs.held_out import check_decodable, check_test
from ray_jobs.job import opened
from ray_jobs.options import Place
from tests.ray_jobs.conftest import CPU
from tests.ray_jobs.images import drawn, index_of


def test_test_images_that_are_training_images_are_told(tmp_path, capsys):
    train = index_of({"a.tar": drawn(0, 30)}, tmp_path / "train")
    check_test("mine", train, index_of({"b.tar": drawn(30, 60)}, tmp_path / "other"))
    assert not capsys.readouterr().out
    renamed = [(f"test-{key}", image, label) for key, image, label in drawn(27, 60)]
    check_test("mine", train, index_of({"b.tar": renamed}, tmp_path / "some"))
    assert "warning: 3 of the 33 test images are in mine, byte for byte" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("classes", "told"), [(("zero", "one", "three"), "differ in two, three"), (("one", "zero", "two"), "order")]
)
def test_classes_that_differ_are_refused(tmp_path, classes, told):
    train = index_of({"a.tar": drawn(0, 9)}, tmp_path / "train")
    with pytest.raises(ValueError, match=told):
        check_test("mine", train, index_of({"b.tar": drawn(9, 18)}, tmp_path / "test", classes))


def test_broken_test_images_are_named_before_anything_is_trained(cluster, tmp_path, monkeypatch):
    samples = drawn(0, 40)
    for at in (3, 17):
        samples[at] = (samples[at][0], b"no image", samples[at][2])
    test, whole = (
        index_of({"a.tar": every[:20], "b.tar": every[20:]}, tmp_path / name)
        for name, every in (("broken", samples), ("whole", drawn(0, 40)))
    )
    monkeypatch.setattr(held_out, "how_to_hold", lambda *_: "encoded")
    with opened(Place(store=str(tmp_path / "runs")), CPU, "test", ["held out"]) as job:
        check_decodable(job, whole, Evaluation("convnet-d3"))
        with pytest.raises(
            ValueError, match=r"2 of the 40 test images cannot be decoded(.|\n)*a\.tar: key 'image0003' \("
        ):
            check_decodable(job, test, Evaluation("convnet-d3"))
        monkeypatch.undo()  # such few images are held decoded
        check_decodable(job, test, Evaluation("convnet-d3"))
        with pytest.raises(ValueError, match="2 of the 40 test images"):
            check_decodable(job, test, Evaluation("convnet-d3"), first=False)
