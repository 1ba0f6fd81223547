"""Files of masked autoencoders, ours and published ones, by the published names of their tensors. Nothing but tensors is unpickled.

Sizes are read off the tensors; what is allocated is bounded by the file.
"""

import io
import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from adq.extractor import load_weights
from adq.mae import MAE, MAEConfig, fresh


def config_of(state: Mapping[str, Tensor], origin: str = "these weights") -> MAEConfig:
    """The sizes that tensors have, by their published names.

    What no tensor says: heads, as in the published networks, are 64 wide (80 in ViT-H, which is 1,280 wide), the decoder's 32,
    and a width that is no such multiple has one head; with tensors of a base, it is the harmonic one.

    Raises:
        ValueError: tensors are missing, or no MAE has such shapes; names `origin` and the tensor.
    """
    shapes = {}
    for name, dims in (("cls_token", 3), ("mask_token", 3), ("pos_embed", 3), ("patch_embed.proj.weight", 4)):
        if name not in state:
            raise ValueError(
                f"{origin}: {name} is missing; expected the tensors of a whole MAE, encoder and decoder, as in "
                "mae_visualize_vit_large_ganloss.pth"
            )
        shapes[name] = tuple(state[name].shape)
        if len(shapes[name]) != dims or not all(shapes[name]):
            raise ValueError(f"{origin}: {name} is {shapes[name]}; expected {dims} dimensions")
    width, decoder_width = shapes["cls_token"][2], shapes["mask_token"][2]
    patch, grid = shapes["patch_embed.proj.weight"][2], math.isqrt(shapes["pos_embed"][1] - 1)
    try:
        return MAEConfig(
            grid * patch, patch, width, _depth(state, "blocks."), _heads(width, 80 if width == 1280 else 64),
            decoder_width, _depth(state, "decoder_blocks."), _heads(decoder_width, 32),
            "harmonic" if "decoder_base.weight" in state else "none",
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from error


def _heads(width: int, head: int) -> int:
    return width // head if width % head == 0 else 1


def _depth(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).partition(".")[0] for name in state if name.startswith(prefix)})


def to_bytes(model: MAE) -> bytes:
    """A weights file: {"model": tensors by their published names, "config": JSON}; `load` reads it."""
    # Copies, so that the bytes depend on the values alone.
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    buffer = io.BytesIO()
    torch.save({"model": state, "config": json.dumps(asdict(model.config), sort_keys=True)}, buffer)
    return buffer.getvalue()


def load(path: str | Path) -> MAE:
    """The network of a weights file: of `to_bytes`, or a published one, in evaluation mode on the CPU.

    Raises:
        OSError: no such file.
        ValueError: as `from_bytes`.
    """
    return from_bytes(Path(path).read_bytes(), str(path))


def from_bytes(data: bytes, origin: str) -> MAE:
    """The network of a weights file's bytes. Nothing but tensors and text is unpickled.

    Raises:
        ValueError: another file, or tensors that are no MAE's; names `origin` and what is wrong.
    """
    state, text = _contents(data, origin)
    config = config_of(state, origin)
    if text is not None:
        config = _stored_config(text, config, origin)
    values = sum(tensor.numel() for tensor in state.values())
    if config.values > 2 * values:  # so that what is allocated is bounded by the file
        raise ValueError(f"{origin}: its tensors hold {values:,} numbers, {config} has {config.values:,}")
    model = fresh(config, 0)
    load_weights(model, state, origin)
    return model.eval()


def _contents(data: bytes, origin: str) -> tuple[dict[str, Tensor], str | None]:
    """The tensors of a weights file, and its configuration where it has one."""
    try:
        if zipfile.is_zipfile(io.BytesIO(data)):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                if sum(member.file_size for member in archive.infolist()) > len(data):
                    raise ValueError("it would be larger than its file when unpacked")
        value = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # these parsers raise whatever they come upon
        reason = next(iter(str(error).splitlines()), "it is empty")[:120]
        raise ValueError(f"{origin}: not a file of plain tensors ({reason}); nothing else is unpickled") from error
    state = value.get("model") if isinstance(value, dict) else None
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise ValueError(f'{origin}: no weights in it; expected {{"model": tensors by name}}')
    size = 0
    for name, tensor in state.items():
        plain = isinstance(tensor, Tensor) and tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not plain or not tensor.is_floating_point() or tensor.dtype.itemsize == 1:
            raise ValueError(f"{origin}: {name} is no tensor of floating-point numbers")
        size += tensor.numel() * tensor.element_size()
        if size > len(data):
            raise ValueError(f"{origin}: {name} and what is before it would be larger than the file")
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{origin}: {name} holds NaN or infinity")
    text = value.get("config")
    if text is not None and not isinstance(text, str):
        raise ValueError(f"{origin}: its config is {type(text).__name__}; expected a JSON text")
    return dict(state), text


def _stored_config(text: str, found: MAEConfig, origin: str) -> MAEConfig:
    """A file's own configuration, of the sizes that its tensors have."""
    try:
        config = MAEConfig(**json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{origin}: its config is none of a MAE ({error})") from error
    if replace(config, heads=found.heads, decoder_heads=found.decoder_heads, base=found.base) != found:
        raise ValueError(f"{origin}: its config {text} does not fit its tensors, which are those of {found}")
    return config
