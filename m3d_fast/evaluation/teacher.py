"""Teachers: trained networks whose outputs are soft labels, read from files of weights."""

import hashlib
import importlib.util
import pickle
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..common.checks import check_name
from ..common.errors import UserError
from ..networks import NETWORKS, build_network
from ..networks.borrowed import Borrowed

TRAINED = "trained"  # in place of an architecture: trained by us, on the training set

# what checkpoints keep beside the weights, or put before their names
_CONTAINERS = ("state_dict", "model")
_PREFIXES = re.compile(r"^(module\.|_orig_mod\.)+")
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
_COUNTERS = "num_batches_tracked"  # of batch norms; older files lack them

State = dict[str, Tensor]


@dataclass(frozen=True)
class TeacherFile:
    """The file of a teacher; it can be sent to another process.

    Attributes:
        architecture: name of a network: ours, of torchvision or, where it is installed, of timm.
        path: of a state dict, as ``torch.save`` or safetensors write it.
        identity: what tells it from other teachers, for ``evaluation.json``.
    """

    architecture: str
    path: Path
    identity: str

    @classmethod
    def find(cls, architecture: str, path: Path) -> "TeacherFile":
        """That of a user's file.

        Raises:
            UserError: if there is no such file.
        """
        if not path.is_file():
            raise UserError(f"teacher: {path} is not a file; expected weights of {architecture}")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return cls(architecture, path, f"{architecture}, sha256 {digest}")

    def load(self, channels: int, size: int, num_classes: int, device: torch.device) -> nn.Module:
        """The network, frozen, in evaluation mode, on ``device``.

        It takes images normalised as the data set's. Of networks of this name the first of which
        the file has the tensors is taken: ours, whose stem fits the size, torchvision's, timm's.

        Raises:
            UserError: if the file is damaged, of another architecture, or of other classes.
        """
        state = _read_state(self.path)
        networks = list(_build(self.architecture, channels, size, num_classes))
        for network in networks:
            if _shapes(network.state_dict()) == _shapes(state):
                network.load_state_dict(state, strict=False)  # only counters may be missing
                network.eval().requires_grad_(False).to(device)
                if device.type == "cuda":
                    network.to(memory_format=torch.channels_last)
                return network
        raise UserError(f"teacher: {self.path}: {_explain(networks, state, self, num_classes)}")


def split_teacher(text: str, network: str) -> tuple[str, Path | None]:
    """Architecture and file of ``ARCHITECTURE:FILE``; no file for ``trained[:NETWORK]``.

    Args:
        text: as the user wrote it.
        network: trained unless another one is named.

    Raises:
        UserError: for another form.
    """
    name, _, rest = text.partition(":")
    if name == TRAINED:
        return rest or network, None
    if not (name and rest):
        raise UserError(f"teacher: expected ARCHITECTURE:FILE or {TRAINED}[:NETWORK], got {text!r}")
    return name, Path(rest).expanduser()


def unwrap(network: nn.Module) -> nn.Module:
    """The network itself, whose tensors have the names of its package."""
    return network.network if isinstance(network, Borrowed) else network


def _build(architecture: str, channels: int, size: int, num_classes: int) -> Iterator[nn.Module]:
    from torchvision import models  # slow to import

    others = models.list_models(module=models)
    known = [*NETWORKS, *others]
    if importlib.util.find_spec("timm") is not None:
        known += importlib.import_module("timm").list_models()
    check_name("teacher", architecture, dict.fromkeys(known))
    if architecture in NETWORKS:
        yield unwrap(build_network(architecture, channels, size, num_classes))
    if architecture in others:
        yield models.get_model(architecture, num_classes=num_classes)
    if importlib.util.find_spec("timm") is not None:
        timm = importlib.import_module("timm")
        if timm.is_model(architecture):
            yield timm.create_model(architecture, num_classes=num_classes, in_chans=channels)


def _read_state(path: Path) -> State:
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (
        *(pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, ValueError, KeyError),
        OSError,
    ) as error:
        first = str(error).partition("\n")[0]
        raise UserError(
            f"teacher: {path}: expected a state dict, which needs no code to be read, found "
            f"something else ({first})"
        ) from error
    for key in _CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not (isinstance(content, Mapping) and all(isinstance(v, Tensor) for v in content.values())):
        found = type(content).__name__
        raise UserError(
            f"teacher: {path}: expected a state dict, tensors by name, found another {found}"
        )
    names = {name: _OLD_DENSENET.sub(r"\1\2", _PREFIXES.sub("", name)) for name in content}
    return {names[name]: tensor for name, tensor in content.items()}


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {k: tuple(v.shape) for k, v in state.items() if not k.endswith(_COUNTERS)}


def _explain(
    networks: list[nn.Module], state: State, teacher: TeacherFile, num_classes: int
) -> str:
    """Why no network fits the tensors of a file."""
    given = _shapes(state)
    for network in networks:
        expected = _shapes(network.state_dict())
        different = [name for name in expected if expected[name] != given.get(name)]
        outputs = {given[name][0] for name in different if given.get(name)}
        ends = all(expected[name][:1] == (num_classes,) for name in different)
        if expected.keys() == given.keys() and ends and len(outputs) == 1:
            return (
                f"expected a teacher of the data set's {num_classes} classes, got one of "
                f"{outputs.pop()}"
            )
    expected = _shapes(networks[0].state_dict())
    name = next(name for name in {**expected, **given} if expected.get(name) != given.get(name))
    found = given.get(name, "no such tensor")
    return (
        f"expected the tensors of {teacher.architecture} for these images, as in {name} of "
        f"{expected.get(name, 'which it has none')}, got {found}"
    )
