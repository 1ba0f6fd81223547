"""The README's example runs as it stands, the map of the house names files that exist, and links lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_the_example_keeps_a_tenth():
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("100 [")


def test_every_module_is_on_the_map():
    rows = re.search(r"## Map of the house(.*?)\n## ", README, re.DOTALL)[1]
    named: set[str] = set()
    for row in rows.splitlines():
        folder = ""
        for path in re.findall(r"`([\w/*.]+)`", row.split("|")[1] if row.startswith("| `") else ""):
            folder = path.rpartition("/")[0] or folder
            found = list(ROOT.glob(path if "/" in path else f"{folder}/{path}"))
            assert found, f"{path} is on the map, and nowhere else"
            named |= {str(p.relative_to(ROOT)) for p in found}
    jobs = {
        f"ray_jobs/{name}.py"
        for name in ("ingest", "weights", "extract", "bins", "score", "sample", "write", "evaluate")
    }
    modules = {
        str(p.relative_to(ROOT))
        for package in ("adq", "palette", "ray_jobs", "ray_jobs/commands")
        for p in (ROOT / package).glob("*.py")
    }
    missing = sorted(m for m in modules - named - jobs if not m.endswith("__init__.py"))
    assert not missing, f"not on the map: {missing}"


PAGES = sorted(path for path in ROOT.rglob("*.md") if not {".venv", ".git"} & set(path.relative_to(ROOT).parts))


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    for link in links:
        place, _, anchor = link.partition("#")
        if "://" in place:
            continue
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
