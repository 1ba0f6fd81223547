"""CITATION.cff is what the Citation File Format 1.2.0 asks for, and names this version."""

import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_it_has_the_required_keys():
    assert CITATION["cff-version"] == "1.2.0" and CITATION["type"] == "software"
    assert CITATION["message"] and CITATION["title"]
    assert CITATION["authors"] == [{"name": "The Tessera authors"}]


def test_it_names_this_distribution():
    assert CITATION["version"] == PROJECT["version"] and CITATION["license"] == PROJECT["license"]
    assert PROJECT["name"] in CITATION["abstract"]


def test_every_reference_is_whole():
    for reference in CITATION["references"]:
        assert reference["type"] == "conference-paper" and reference["title"] and isinstance(reference["year"], int)
        assert all(set(author) == {"family-names", "given-names"} for author in reference["authors"])
        (arxiv,) = reference["identifiers"]
        assert arxiv["type"] == "other" and reference["url"].endswith(arxiv["value"].removeprefix("arXiv:"))
    assert [r["identifiers"][0]["value"] for r in CITATION["references"]] == [
        "arXiv:2412.16895", "arXiv:2411.11329", "arXiv:2308.10524",
    ]  # fmt: skip
