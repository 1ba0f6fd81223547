"""Imports go down only: adq and palette work on a machine that has only PyTorch, and `import adq` costs nothing."""

import pkgutil
import subprocess
import sys
from pathlib import Path

import adq
import palette

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("pyarrow", "webdataset", "ray", "mlflow")
BLOCKED = """
import importlib, importlib.abc, sys

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Block())
failed = []
for name in {modules!r}:
    try:
        importlib.import_module(name)
    except ImportError as error:
        failed.append(f"{{name}}: {{error}}")
print("; ".join(failed))
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def modules(*packages) -> list[str]:
    return [f"{p.__name__}.{m.name}" for p in packages for m in pkgutil.iter_modules(p.__path__)]


def test_every_module_but_shards_imports_with_torch_alone():
    wanted = [name for name in modules(adq, palette) if name != "adq.shards"]
    assert "adq.graphcut" in wanted
    assert run(BLOCKED.format(blocked=HEAVY, modules=wanted)) == ""


def test_the_block_works_and_shards_is_the_one_that_needs_it():
    assert "blocked" in run(BLOCKED.format(blocked=HEAVY, modules=["adq.shards"]))


def test_shards_needs_neither_ray_nor_mlflow():
    assert run(BLOCKED.format(blocked=("ray", "mlflow"), modules=["adq.shards", "webdataset.tariterators"])) == ""


def test_the_packages_themselves_import_nothing_heavy():
    heavy = (*HEAVY, "torch", "torchvision", "numpy", "PIL")
    assert run(f"import sys, adq, palette; print([name for name in {heavy!r} if name in sys.modules])") == "[]"


def test_actors_that_read_and_write_shards_do_without_torch():
    modules = "ray_jobs.ingest, ray_jobs.write"
    assert run(f"import sys, {modules}; print([name for name in ('torch', 'mlflow') if name in sys.modules])") == "[]"
