"""Samples of shards, with names as long as tars allow."""

LONG = "folder/" + "x" * 180 + "/" + "y" * 90
MEMBERS = [
    ("a/0001.jpg", b"first image" * 100),
    ("a/0001.cls", b"3"),
    ("0002.json", b'{"n": 1}'),
    ("0002.jpg", b""),
    ("0002.cls", b"4"),
    (f"{LONG}.jpg", bytes(range(256)) * 5),
    (f"{LONG}.cls", b"5"),
    ("kůň-馬.jpg", b"horse"),
    ("kůň-馬.cls", b"7"),
]
SAMPLES = [
    {"__key__": "a/0001", "jpg": b"first image" * 100, "cls": b"3"},
    {"__key__": "0002", "json": b'{"n": 1}', "jpg": b"", "cls": b"4"},
    {"__key__": LONG, "jpg": bytes(range(256)) * 5, "cls": b"5"},
    {"__key__": "kůň-馬", "jpg": b"horse", "cls": b"7"},
]


def plain(samples) -> list[dict]:
    return [{k: v for k, v in sample.items() if k not in ("__url__", "__local_path__")} for sample in samples]
