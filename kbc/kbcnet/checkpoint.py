"""Checkpoints: `<name>.safetensors` with the tensors and `<name>.json` with what they are. Nothing is unpickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from kbc.errors import DataError, InputError, must_be, requirement
from kbc.files import is_file, read_json, write_json
from kbc.kbcnet.backbone import resnet_weights
from kbc.kbcnet.config import ModelConfig
from kbc.kbcnet.model import Network
from kbc.weights import load_safetensors, save_safetensors, tensors_digest

FORMAT = "kbcnet-1"
_NETWORK = "backbone.network."


class Card(BaseModel):
    """What the JSON beside the weights says.

    Attributes:
        format: version of this form.
        model: the architecture.
        learned_coarse: the deepest layer was learned, because the backbone's weights end before it.
        backbone_digest: of the backbone's weights when they are not in the file, else None.
        weights_digest: of the weights in the file; None in checkpoints of earlier versions.
        training: how the weights came about.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: str = FORMAT
    model: ModelConfig
    learned_coarse: bool = False
    backbone_digest: str | None = None
    weights_digest: str | None = None
    training: dict[str, Any] = {}


def save_checkpoint(
    path: str | Path, network: Network, *, training: dict[str, Any] | None = None, with_backbone: bool = True
) -> None:
    """Write the tensors (.safetensors, added to a path without it) and the JSON beside them.

    Args:
        with_backbone: False leaves out a frozen backbone's weights, which have a licence and a file of their own; its
            digest is kept so that another backbone is refused.
    """
    tensors, described = _files(path)
    state = _held(network, with_backbone)
    card = Card(
        model=network.config,
        learned_coarse=network.backbone.learned_coarse,
        backbone_digest=None if with_backbone else backbone_digest(network),
        weights_digest=tensors_digest(state),
        training=training or {},
    )
    save_safetensors(tensors, state, {"format": FORMAT})
    write_json(card.model_dump(mode="json"), described)


def load_checkpoint(path: str | Path, backbone_weights: str | Path | None = None) -> tuple[Network, Card]:
    """The network of a checkpoint, on the CPU, in eval mode.

    Args:
        path: the .safetensors or the .json file, or the name that both share.
        backbone_weights: of the ResNet, for a checkpoint that does not hold them.

    Raises:
        InputError: no such file, or backbone weights missing or not asked for.
        DataError: damaged, of another program or of a newer kbc, incomplete, or trained with other backbone weights.
    """
    tensors, described = _files(path)
    if not is_file(tensors):
        expected = "an existing KBCNet checkpoint, a .safetensors file with its .json beside it"
        raise InputError(must_be("weights", expected, repr(str(path)), "check the path"))
    card = read_card(described)
    state = load_safetensors(tensors)
    network = empty_network(card.model, learned_coarse=card.learned_coarse).float()  # whatever the default dtype is
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
    with_backbone = card.backbone_digest is None
    fill(network, state, str(tensors), with_backbone=with_backbone)
    if card.weights_digest not in (None, tensors_digest(_held(network, with_backbone))):
        hint = f"copy both files again; if you changed it yourself, take weights_digest out of {described.name}"
        raise DataError(must_be("weights", "those that the .json speaks of", f"others in {str(tensors)!r}", hint))
    return network.eval(), card


def read_card(path: str | Path) -> Card:
    """The JSON of a checkpoint. Errors as `load_checkpoint`."""
    path = Path(path)
    if not is_file(path):
        raise InputError(must_be("weights", "a KBCNet checkpoint with its .json", repr(str(path)), "check the path"))
    try:
        values = read_json(path)
    except DataError as error:
        raise DataError(must_be("weights", "a KBCNet checkpoint", str(error))) from error
    written = values.get("format", FORMAT) if isinstance(values, dict) else FORMAT
    if written != FORMAT:  # asked first: a newer form may have other fields
        hint = "a newer kbc wrote it: update kbc" if str(written).startswith("kbcnet-") else ""
        raise DataError(must_be("weights", f"a KBCNet checkpoint of format {FORMAT}", repr(written), hint))
    try:
        return Card.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        received = f"{str(path)!r}, in which {where!r} {requirement(first['msg'])}"
        raise DataError(must_be("weights", "a KBCNet checkpoint", received)) from error


def _files(path: str | Path) -> tuple[Path, Path]:
    """The tensors' and the JSON's file of a checkpoint; a name may have dots of its own ("run.v1")."""
    path = Path(path)
    name = path.stem if path.suffix in (".safetensors", ".json") else path.name
    return path.parent / f"{name}.safetensors", path.parent / f"{name}.json"


def fill(network: Network, state: dict[str, Tensor], where: str, *, with_backbone: bool = True) -> None:
    """Copy a state dict into a network.

    Raises:
        DataError: tensors are missing, left over (but for backbone layers that are not used), or of another shape.
    """
    own = network.state_dict()
    unused = tuple(_NETWORK + name for name in network.backbone.unused)
    state = {name: value for name, value in state.items() if not name.startswith(unused)}
    wanted = set(_held(network, with_backbone))
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
    """Copy a ResNet's state dict, whole or as deep as it is used, into a network's backbone."""
    backbone = network.backbone
    used = {name: value for name, value in state.items() if not name.startswith(backbone.unused)}
    backbone.network.load_state_dict(used)


def empty_network(config: ModelConfig, *, learned_coarse: bool = False, seed: int = 0) -> Network:
    """A network on the CPU with weights drawn from a seed; torch's own random state stays as it was."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):  # whatever the default device is
        torch.manual_seed(seed)
        return Network(config, learned_coarse=learned_coarse)


def backbone_digest(network: Network) -> str:
    """Of the ResNet layers that are used: the same for a truncated and for a whole weight file."""
    state = network.backbone.network.state_dict()
    return tensors_digest({name: value for name, value in state.items() if not name.endswith("num_batches_tracked")})


def _held(network: Network, with_backbone: bool) -> dict[str, Tensor]:
    """The tensors that a checkpoint of the network holds."""
    state = network.state_dict()
    return {name: value for name, value in state.items() if with_backbone or not name.startswith(_NETWORK)}
