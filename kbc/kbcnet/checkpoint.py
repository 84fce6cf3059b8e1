"""Checkpoints: `<name>.safetensors` with the tensors and `<name>.json` with what they are. Nothing is unpickled."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from kbc.errors import DataError, InputError, must_be
from kbc.files import write_json
from kbc.kbcnet.backbone import resnet_weights
from kbc.kbcnet.config import ModelConfig
from kbc.kbcnet.network import Network
from kbc.weights import load_safetensors, save_safetensors

FORMAT = "kbcnet-1"
_NETWORK = "backbone.network."


class Card(BaseModel):
    """What the JSON beside the weights says.

    Attributes:
        format: version of this form.
        model: the architecture.
        learned_coarse: the deepest layer was learned, because the backbone's weights end before it.
        backbone_digest: of the backbone's weights when they are not in the file, else None.
        training: how the weights came about.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str = FORMAT
    model: ModelConfig
    learned_coarse: bool = False
    backbone_digest: str | None = None
    training: dict[str, Any] = {}


def save_checkpoint(
    path: str | Path, network: Network, *, training: dict[str, Any] | None = None, with_backbone: bool = True
) -> None:
    """Write `<path>` (.safetensors) and the JSON beside it.

    Args:
        with_backbone: False leaves out a frozen backbone's weights, which have a licence and a file of their own; its
            digest is kept so that another backbone is refused.
    """
    path = Path(path)
    state = network.state_dict()
    digest = None
    if not with_backbone:
        digest = backbone_digest(network)
        state = {name: value for name, value in state.items() if not name.startswith(_NETWORK)}
    card = Card(
        model=network.config,
        learned_coarse=network.backbone.learned_coarse,
        backbone_digest=digest,
        training=training or {},
    )
    save_safetensors(path, state, {"format": FORMAT})
    write_json(card.model_dump(mode="json"), path.with_suffix(".json"))


def load_checkpoint(path: str | Path, backbone_weights: str | Path | None = None) -> tuple[Network, Card]:
    """The network of a checkpoint, on the CPU, in eval mode.

    Args:
        path: the .safetensors or the .json file.
        backbone_weights: of the ResNet, for a checkpoint that does not hold them.

    Raises:
        InputError: no such file, or backbone weights missing or not asked for.
        DataError: damaged, of another program, incomplete, or trained with other backbone weights.
    """
    path = Path(path).with_suffix(".safetensors")
    card = read_card(path.with_suffix(".json"))
    state = load_safetensors(path)
    network = empty_network(card.model, learned_coarse=card.learned_coarse)
    if card.backbone_digest is not None:
        if backbone_weights is None:
            hint = f"this checkpoint was trained on frozen {card.model.backbone} weights and does not hold them"
            raise InputError(must_be("backbone_weights", "a weight file", "None", hint))
        put_backbone(network, resnet_weights(card.model, backbone_weights)[0])
        if backbone_digest(network) != card.backbone_digest:
            received = repr(str(backbone_weights))
            raise DataError(must_be("backbone_weights", "the ones this checkpoint was trained with", received))
    elif backbone_weights is not None:
        raise InputError(must_be("backbone_weights", "None: the checkpoint holds its own", repr(str(backbone_weights))))
    fill(network, state, str(path), without_backbone=card.backbone_digest is not None)
    return network.eval(), card


def read_card(path: str | Path) -> Card:
    """The JSON of a checkpoint. Errors as `load_checkpoint`."""
    path = Path(path)
    if not path.is_file():
        raise InputError(must_be("weights", "a KBCNet checkpoint with its .json", repr(str(path)), "check the path"))
    try:
        card = Card.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(must_be("weights", "a KBCNet checkpoint", f"{str(path)!r}: {where}: {first['msg']}")) from error
    if card.format != FORMAT:
        raise DataError(must_be("weights", f"of format {FORMAT}", repr(card.format), "update kbc"))
    return card


def fill(network: Network, state: dict[str, Tensor], where: str, *, without_backbone: bool = False) -> None:
    """Copy a state dict into a network.

    Raises:
        DataError: tensors are missing, left over, or of another shape.
    """
    own = network.state_dict()
    wanted = {name for name in own if not (without_backbone and name.startswith(_NETWORK))}
    missing, strange = sorted(wanted - set(state)), sorted(set(state) - set(own))
    wrong = sorted(name for name in wanted & set(state) if own[name].shape != state[name].shape)
    for problem, names in (("lacks", missing), ("also has", strange), ("has another shape of", wrong)):
        if names:
            expected = f"the weights of this {network.config.backbone} KBCNet"
            raise DataError(
                must_be("weights", expected, f"{where!r}, which {problem} {names[0]!r}", f"{len(names)} in all")
            )
    network.load_state_dict(state, strict=False)


def put_backbone(network: Network, state: dict[str, Tensor]) -> None:
    """Copy a whole ResNet's state dict into a network's backbone."""
    network.backbone.network.load_state_dict(state)


def empty_network(config: ModelConfig, *, learned_coarse: bool = False, seed: int = 0) -> Network:
    """A network with weights drawn from a seed; torch's own random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network(config, learned_coarse=learned_coarse)


def backbone_digest(network: Network) -> str:
    """Of the ResNet layers that are used: the same for a truncated and for a whole weight file."""
    backbone = network.backbone
    last = backbone.layers[1] if backbone.learned_coarse else backbone.layers[2]
    unused = tuple(f"layer{layer}." for layer in range(last + 1, 5))
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(backbone.network.state_dict().items()):
        if not name.startswith(unused) and not name.endswith("num_batches_tracked"):
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
