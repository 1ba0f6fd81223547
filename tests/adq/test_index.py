"""The index: byte ranges that are exact, and every fault that headers can show, named with its file and key."""

import bz2
import gzip
import hashlib
import io
import lzma
import pickle
import tarfile

import pytest

from adq.file_heads import split
from adq.index import Member, Parts, Sample, ShardScan, split_name
from adq.shards import locate, read_samples, tar_bytes
from tests.adq.shard_bytes import BLOCK, JPEG, WHERE, jpeg, members, read, refused, sample


def test_samples_in_the_shards_own_order():
    found = members(sample("b", "1"), sample("a", "0"), sample("sub/c", "2"))
    assert [(s.key, s.label) for s in found.samples] == [("b", 1), ("a", 0), ("sub/c", 2)]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_offsets_sizes_and_digests_are_those_of_the_exact_bytes(form):
    # Long and non-ASCII names put extra headers before a member: the offset must be past them.
    names = ["short", "folder/kůň"] if form == tarfile.USTAR_FORMAT else ["a" * 150, "f" * 120 + "/" + "馬" * 60]
    given = [(f"{name}.{ext}", data) for name in names for ext, data in (("jpg", JPEG), ("cls", b"7"), ("txt", b""))]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data in given:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    found = read(buffer.getvalue())
    seen = [m for s in found.samples for m in s.members]
    assert [(m.name, buffer.getvalue()[m.offset : m.offset + m.size]) for m in seen] == given
    assert [m.sha256 for m in seen] == [hashlib.sha256(data).hexdigest() for _, data in given]
    assert [s.key for s in found.samples] == names


def test_the_index_and_the_reader_agree_on_the_samples(tmp_path):
    given = [
        *sample("x/a", "3"),
        ("x/._a.jpg", b"fork"),
        ("__meta__/c.jpg", b""),
        *sample("d.e/f", "4"),
        *sample("G", "5"),
    ]
    (tmp_path / "a.tar").write_bytes(tar_bytes(given))
    read_by_webdataset = list(read_samples(locate([str(tmp_path)]), "a.tar"))
    indexed = members(given).samples
    assert [(s["__key__"], int(s["cls"])) for s in read_by_webdataset] == [(s.key, s.label) for s in indexed]


def test_meta_members_folders_and_macos_files_are_left_out():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        folder = tarfile.TarInfo("sub")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        extra = [("__meta__", b"{}"), ("__index__/a.jpg", b"x"), ("sub/._a.jpg", b"fork"), ("._a", b"fork")]
        for name, data in [*extra, *sample("sub/a", "1")]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    (only,) = read(buffer.getvalue()).samples
    assert (only.key, only.label, len(only.members)) == ("sub/a", 1, 2)


def test_extra_members_belong_to_their_sample():
    (only,) = members([*sample("a", "1"), ("a.json", b"{}"), ("a.seg", b"123")]).samples
    assert [m.name for m in only.members] == ["a.jpg", "a.cls", "a.json", "a.seg"]


def test_the_label_may_come_before_the_image_and_extensions_in_capitals():
    (only,) = members([("a.CLS", b"4\n"), ("a.JPG", JPEG)]).samples
    assert only.label == 4 and only.members[1].name == "a.JPG"


def test_sides_are_those_of_the_first_sixteen_images():
    found = members(*[sample(f"{n:02d}", "0", jpeg(100 - n, 200)) for n in range(20)])
    assert found.sides == tuple(100 - n for n in range(16))


def test_an_image_that_does_not_decode_is_left_to_extract():
    found = members(sample("a", "0", b"no image"), sample("b"))
    assert [s.key for s in found.samples] == ["a", "b"] and found.sides == (30,)


@pytest.mark.parametrize(
    ("kind", "squeeze"),
    [("gzip", gzip.compress), ("bzip2", bz2.compress), ("xz", lzma.compress),
     ("zstd", lambda data: b"\x28\xb5\x2f\xfd" + data)],
)  # fmt: skip
def test_a_compressed_tar_is_refused_by_its_first_bytes(kind, squeeze):
    refused(squeeze(tar_bytes(sample("a"))), kind, "unpack")


def test_a_member_may_be_named_like_a_compressed_file():
    assert [s.key for s in members(sample("BZh9")).samples] == ["BZh9"]  # a tar begins with its first member's name


def test_a_cut_anywhere_is_refused():
    data = tar_bytes([*sample("a"), *sample("b")])
    scanned = read(data)
    end = max(m.offset + -(-m.size // BLOCK) * BLOCK for s in scanned.samples for m in s.members)
    assert not any(data[end:])
    for cut in [*range(BLOCK, end + 2 * BLOCK, BLOCK), *range(1, end + 2 * BLOCK, 97)]:
        refused(data[:cut], "copy")
    assert read(data[: end + 2 * BLOCK]) == scanned  # the two closing blocks are enough: padding to 10240 is custom


def test_a_tar_cut_at_a_members_end_is_refused_though_tarfile_does_not_notice():
    data = tar_bytes([*sample("a"), *sample("b")])
    end = read(data).samples[0].members[1].offset + BLOCK
    cut = data[:end]
    with tarfile.open(fileobj=io.BytesIO(cut)) as tar:
        assert tar.getnames() == ["a.jpg", "a.cls"]
    refused(cut, "closing blocks", f"after byte {end}")
    refused(cut + bytes(BLOCK), "closing blocks")
    assert len(read(cut + bytes(2 * BLOCK)).samples) == 1


def test_a_cut_inside_a_member_is_refused():
    data = tar_bytes([*sample("a"), *sample("b")])
    inside = read(data).samples[1].members[0]
    refused(data[: inside.offset + inside.size // 2], "copy it again")


@pytest.mark.parametrize("at", [0, 20, 110, 148, 156, 300])
def test_a_damaged_header_in_the_middle_is_refused(at):
    data = bytearray(tar_bytes([*sample("a"), *sample("b"), *sample("c")]))
    start = read(bytes(data)).samples[1].members[0].offset - BLOCK
    data[start + at] ^= 0x15
    refused(bytes(data), "damaged")


def test_what_is_no_tar_is_refused():
    for data in (b"", b"x", b"hello " * 1000, b"\x89PNG\r\n\x1a\n" * 200):
        refused(data, "damaged or truncated")


def test_an_empty_shard_is_refused():
    refused(tar_bytes([]), "no samples")
    refused(tar_bytes([("__meta__", b"{}")]), "no samples")


@pytest.mark.parametrize("between", [sample("b"), []])
def test_members_that_are_not_adjacent_are_refused(between):
    refused(tar_bytes([*sample("a"), *sample("b"), ("a.txt", b"late")]), "'a'", "not adjacent")
    split = [("a.jpg", JPEG), ("a.cls", b"0"), *sample("c"), *between, ("a.json", b"{}")]
    refused(tar_bytes(split), "'a'", "not adjacent")


def test_images_first_and_labels_later_are_refused():
    # As `tar --sort=name` makes them from two folders: the first key is already without its label.
    given = [("a.jpg", JPEG), ("b.jpg", JPEG), ("a.cls", b"0"), ("b.cls", b"0")]
    refused(tar_bytes(given), "'a'", "label")


@pytest.mark.parametrize(
    "given",
    [[*sample("a"), *sample("a")], [*sample("a"), *sample("b"), *sample("a")], [("a.jpg", JPEG), *sample("a")],
     [*sample("a"), ("a.JPG", JPEG)], [*sample("a"), ("a.cls", b"1")]],
)  # fmt: skip
def test_a_duplicate_key_is_refused(given):
    refused(tar_bytes(given), "'a'", "twice")


@pytest.mark.parametrize("name", ["a.b.jpg", "a.tar.gz", "x/v1.0.jpg", "a..jpg", "a.jpg."])
def test_more_than_one_dot_is_refused(name):
    refused(tar_bytes([*sample("fine"), (name, JPEG)]), repr(name), "more than one dot")


@pytest.mark.parametrize("name", ["README", "a.", ".jpg", "x/.jpg", "a.b/c"])
def test_a_name_without_key_or_extension_is_refused(name):
    refused(tar_bytes([*sample("fine"), (name, JPEG)]), repr(name), "no key or no extension")


@pytest.mark.parametrize("name", ["/etc/a.jpg", "../a.jpg", "x/../../a.jpg", "x/.."])
def test_a_name_that_points_outside_is_refused(name):
    refused(tar_bytes([*sample("fine"), (name, JPEG)]), repr(name), "outside the archive")


def test_a_name_that_is_no_text_is_refused():
    # Latin-1 in an old tar: such a key could be neither JSON nor Parquet.
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT, encoding="latin-1") as tar:
        for name, data in sample("café"):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    refused(buffer.getvalue(), "UTF-8", "rename")


def test_folders_may_hold_dots():
    assert split_name("imagenet-v1.0/n01.x/img.JPEG", WHERE) == ("imagenet-v1.0/n01.x/img", "jpeg")


def test_pickles_are_bytes_like_any_other(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    payload = pickle.dumps(Bomb())
    given = [*sample("a", "1"), *((f"a.{ext}", payload) for ext in ("pkl", "pickle", "pyd", "pth", "npy", "ten"))]
    assert len(members(given).samples[0].members) == 8
    refused(tar_bytes([("a.jpg", payload), ("a.cls", payload)]), "'a'")
    assert not (tmp_path / "ran").exists()


def test_a_sparse_member_is_refused():
    # GNU tar -S leaves holes out: the bytes in the file are not the member's bytes, so no byte range could give them.
    header = tarfile.TarInfo("a.jpg")
    header.size = BLOCK
    raw = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    raw[156:157] = tarfile.GNUTYPE_SPARSE
    raw[386:410] = b"00000002000\x0000000001000\x00"  # 512 bytes that belong at offset 1024
    raw[483:495] = b"00000003000\x00"  # of 1536
    raw[148:156] = b"%06o\x00 " % (sum(raw[:148]) + 8 * 32 + sum(raw[156:]))
    data = bytes(raw) + JPEG[:BLOCK].ljust(BLOCK, b"\x00") + tar_bytes([("a.cls", b"0")])
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.next().issparse()
    refused(data, "a.jpg", "sparse")


def test_a_scan_is_plain_data():
    found = members(sample("a", "1"))
    digest = hashlib.sha256(JPEG).hexdigest()
    one = Member("a.cls", BLOCK + -(-len(JPEG) // BLOCK) * BLOCK + BLOCK, 1, hashlib.sha256(b"1").hexdigest())
    head, own = split(JPEG)
    assert len(head) > 300 and len(own) == len(JPEG) - len(head)
    image = Parts(len(own), hashlib.sha256(head).hexdigest()[:16], len(head))
    assert found == ShardScan((Sample("a", 1, (Member("a.jpg", BLOCK, len(JPEG), digest), one), image),), (30,))


def test_an_image_without_a_head_is_all_its_own():
    found = members([("a.jpg", b"no image"), ("a.cls", b"1"), *sample("b"), ("b.json", b"{}"), *sample("c")])
    assert [one.image for one in found.samples] == [Parts(8, "", 0), Parts.of(JPEG), Parts.of(JPEG)]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_link_is_refused_rather_than_lost(kind):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in sample("a"):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("b.jpg")
        link.type, link.linkname = kind, "a.jpg"
        tar.addfile(link)
    refused(buffer.getvalue(), "b.jpg", "is a link", "--dereference")


def test_tars_that_were_put_together_are_refused_rather_than_half_read():
    one, two = tar_bytes(sample("a")), tar_bytes(sample("b"))
    refused(one + two, "more follows the closing blocks", "cat")
