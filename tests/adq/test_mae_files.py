"""A masked autoencoder's file: the network comes back, a published one is read, and nothing malformed is taken."""

import io
import json
import math
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from adq.mae import (
    MAEConfig,
    fresh,
)
from adq.mae_weights import config_of, from_bytes, load, to_bytes
from adq.randomness import torch_generator
from tests.adq.mae_cases import TINY, lively, saved


def test_a_file_gives_the_network_back(tmp_path):
    model = lively(replace(TINY, base="mean"))
    path = tmp_path / "mae.pt"
    path.write_bytes(to_bytes(model))
    found = load(path)
    assert found.config == model.config and not found.training
    state = model.state_dict()
    assert list(found.state_dict()) == list(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.state_dict().items())
    assert all(parameter.requires_grad for parameter in found.parameters())
    assert to_bytes(found) == to_bytes(model)


def test_a_published_file_needs_no_configuration():
    config = MAEConfig(16, 8, 128, 3, 2, 64, 2, 2)
    model = lively(config)
    assert config_of(model.state_dict()) == config
    found = from_bytes(saved({"model": {name: tensor.half() for name, tensor in model.state_dict().items()}}), "x.pth")
    assert found.config == config and found.cls_token.dtype == torch.float32
    torch.testing.assert_close(found.norm.weight, model.norm.weight, atol=1e-3, rtol=1e-3)


class Intruder:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/tessera-mae-intruder"),))


def test_what_is_no_weights_file_is_refused_and_nothing_runs():
    for data in (b"", b"no checkpoint", saved(Intruder()), pickle.dumps(Intruder(), 2), saved({"model": Intruder()})):
        with pytest.raises(ValueError, match=r"w\.pth: not a file of plain tensors"):
            from_bytes(data, "w.pth")
    for value in ({}, [1], {"model": {}}, {"model": [torch.ones(1)]}, {"model": {1: torch.ones(1)}}):
        with pytest.raises(ValueError, match=r"w\.pth: "):
            from_bytes(saved(value), "w.pth")
    assert not Path("/tmp/tessera-mae-intruder").exists()


def without(state: dict, *names: str) -> dict:
    return {name: tensor for name, tensor in state.items() if name not in names}


def test_wrong_tensors_are_named_before_anything_is_allocated():
    state = lively(TINY).state_dict()
    config = json.dumps({"image_size": 16, "patch_size": 4, "width": 64, "depth": 2, "heads": 3})
    cases = [
        (without(state, "mask_token"), "mask_token is missing; expected the tensors of a whole MAE"),
        (without(state, "norm.weight"), r"norm\.weight is missing"),
        (without(state, *(name for name in state if name.startswith("blocks.0"))), r"blocks\.0.* is missing"),
        (without(state, *(name for name in state if "blocks" in name)), "depth of a MAE is 0"),
        (state | {"norm.weight": torch.ones(63)}, r"norm\.weight is \(63,\), not \(64,\)"),
        (state | {"norm.weight": torch.full((64,), math.nan)}, r"norm\.weight holds NaN"),
        (state | {"norm.weight": torch.ones(64, dtype=torch.int64)}, r"norm\.weight is no tensor of floating"),
        (state | {"norm.weight": "ones"}, r"norm\.weight is no tensor"),
        (state | {"norm.weight": torch.ones(1).expand(10**12)}, r"norm\.weight .* larger than the file"),
        (state | {"cls_token": torch.zeros(1, 1, 1 << 20)}, "its tensors hold 1,169,904 numbers, MAEConfig"),
        (state | {"pos_embed": torch.zeros(1, 0, 64)}, r"pos_embed is \(1, 0, 64\)"),
        (state | {"decoder_pos_embed": torch.zeros(1, 5, 32)}, r"decoder_pos_embed is \(1, 5, 32\)"),
    ]
    for tensors, message in cases:
        with pytest.raises(ValueError, match=rf"w\.pth: .*{message}"):
            from_bytes(saved({"model": tensors}), "w.pth")
    for text, message in (
        (config, "none of a MAE"),
        ("[" * 100_000, "none of a MAE"),
        (json.dumps(vars(TINY) | {"heads": 3}), "multiple of the heads"),
        (json.dumps(vars(TINY) | {"width": 1 << 40}), "does not fit its tensors"),
        (json.dumps(vars(TINY) | {"depth": True}), "whole number"),
        (7, "expected a JSON text"),
    ):
        with pytest.raises(ValueError, match=rf"w\.pth: .*{message}"):
            from_bytes(saved({"model": state, "config": text}), "w.pth")


def test_damaged_files_raise_value_errors():
    data = to_bytes(fresh(MAEConfig(8, 4, 8, 1, 1, 8, 1, 1), 0))
    generator = torch_generator(0, "damage")
    for at in torch.randint(len(data), (40,), generator=generator).tolist():
        for damaged in (data[:at], data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :]):
            try:
                from_bytes(damaged, "w.pth")
            except ValueError as error:
                assert "w.pth" in str(error)
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 24))
    with pytest.raises(ValueError, match="larger than its file when unpacked"):
        from_bytes(bomb.getvalue(), "w.pth")
