"""The complete, checked settings of a condensation."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Never, Self

import torch

from .augment import parse_strategy
from .basis import Basis
from .common.checks import check_name, check_positive
from .common.errors import UserError
from .common.hardware import check_precision
from .condense_settings import DECODERS, OPTIMIZERS, SOURCES, CondenseSettings
from .coreset import CORESETS
from .loaders import RealImages, dataset_info, open_dataset
from .methods import Objective, Scope, add_terms, build_method
from .methods.bptt import BPTT
from .networks import CONDENSING, build_network, check_network
from .presets import BY_ACCURACY
from .schedule import SCHEDULES
from .starting_set import is_path
from .synthetic import check_factor

INITS = ("mix", "real", "noise")
DRAWS = ("class", "all")
# settings that older runs did not save, and what those did; as all of steps, None of a coreset
LATER: dict[str, Any] = {"lr_schedule": "constant", "pretrained": False}


class ResolvedConfig(CondenseSettings[Never]):
    """Complete, checked settings, made by :meth:`CondenseConfig.resolve`.

    None remains where the run decides: ``data_root``, ``workers``, ``class_chunk``,
    ``checkpoint_every``; without a ``budget`` or snapshots; and for settings of steps, of which a
    coreset has none.
    """

    @classmethod
    def from_dict(cls, settings: dict[str, Any], path: Path) -> Self:
        """The settings that a run saved in ``path``, this version or an earlier one.

        Raises:
            UserError: if ``settings`` lack a name or have one that is not a setting.
        """
        coreset = settings.get("method") in CORESETS
        settings = (dict.fromkeys(LATER) if coreset else LATER) | settings
        names = {field.name for field in fields(cls)}
        if settings.keys() != names:
            different = ", ".join(sorted(settings.keys() ^ names))
            raise UserError(
                f"{path}: expected the settings of a condensation; unknown or missing: {different}"
            )
        options = {
            name: tuple(value) if isinstance(value, list) else value  # JSON has no tuples
            for name, value in settings["options"].items()
        }
        return cls(**(settings | {"options": options}))

    def check(self) -> None:
        """Check every setting that has not been checked while it was completed.

        Raises:
            UserError: for an invalid setting.
        """
        check_positive("log_every", self.log_every)
        if not self.selects:
            self._check_steps()
        for name in ("budget", "class_chunk", "checkpoint_every", "snapshot_every", "workers"):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name))
        if self.seed < 0:
            raise UserError(f"seed: expected a whole number >= 0, got {self.seed}")
        check_factor(self.factor, self.size)
        check_precision(self.precision, self.device)
        if self.cuda_graphs and not self.device.startswith("cuda"):
            raise UserError(f"cuda_graphs: expected a CUDA device, got {self.device}")
        if self.cuda_graphs and self.unrolls:
            raise UserError(
                f"cuda_graphs: a window of {self.method} is no single graph; leave it out"
            )
        if self.profile and self.cuda_graphs:
            raise UserError("profile: a CUDA graph hides what runs in it; add --no-cuda-graphs")
        check_network(self.network, CONDENSING)
        with torch.device("meta"):  # raises UserError for a size the network cannot take
            build_network(self.network, dataset_info(self.dataset).channels, self.size, 2)

    def _check_steps(self) -> None:
        if not is_path(self.init):
            check_name("init", self.init, INITS)
        check_name("optimizer", self.optimizer, OPTIMIZERS)
        check_name("lr_schedule", self.lr_schedule, SCHEDULES)
        if self.budget is not None and self.changes_rate:
            raise UserError(
                f"lr_schedule: {self.lr_schedule} follows the iterations, and a budget of seconds "
                f"leaves open how many there are; expected constant, or no budget"
            )
        self._check_decoder()
        self._check_networks_and_scope()
        for name in ("iterations", "real_batch", "lr_img", "group", "pool", "pool_epochs"):
            check_positive(name, getattr(self, name))
        for name in ("momentum", "average"):
            share = getattr(self, name)
            if not 0 <= share < 1:
                raise UserError(f"{name}: expected a number from 0 to below 1, got {share}")
        if self.precision == "bf16" and self.build_method().float32_only:
            raise UserError(
                f"precision: {self.method} matches gradients, which bf16 is too coarse for; "
                f"expected fp32 or tf32"
            )
        parse_strategy(self.augment)

    def _check_decoder(self) -> None:
        check_name("decode", self.decode, DECODERS)
        if self.decode == "basis":
            check_positive("decoded", self.decoded)
        elif self.decoded is not None:
            raise UserError(
                f"decoded: tiles are {self.factor**2} images each; leave it out, or give "
                f"--decode basis"
            )

    def _check_networks_and_scope(self) -> None:
        check_name("networks_from", self.networks_from, SOURCES)
        if self.unrolls and self.networks_from != "synthetic":
            raise UserError(
                f"networks_from: {self.method} trains its networks on the synthetic images, got "
                f"{self.networks_from}; leave it out"
            )
        if self.build_method().experts and self.networks_from != "pool":
            raise UserError(
                f"networks_from: {self.method} reads fully trained networks too, which only a pool "
                f"has; expected pool, got {self.networks_from}"
            )
        if self.ipm != BY_ACCURACY or self.networks_from != "synthetic":
            check_positive("ipm", self.ipm)
        if self.pretrained and self.networks_from != "real":
            raise UserError(
                f"pretrained: only networks from real images can start pre-trained, got "
                f"{self.networks_from}; expected --networks-from real, or --no-pretrained"
            )
        if self.pool_stages < 0:
            raise UserError(f"pool_stages: expected a whole number >= 0, got {self.pool_stages}")
        check_name("draws", self.draws, DRAWS)
        compares = self.scope == "joint" or self.build_method().grouped
        if compares and self.draws == "class":
            raise UserError(
                f"draws: {self.method} with its terms compares classes, which a draw of "
                f"augmentation for each would tell apart; expected all, got class"
            )
        if self.scope == "joint" and self.class_chunk is not None:
            raise UserError(
                f"class_chunk: {self.method} compares all classes with each other, so that they "
                f"are stepped together; leave out --class-chunk, or give auto"
            )

    @property
    def unrolls(self) -> bool:
        """Whether steps go through the training of networks, not through what they read."""
        return not self.selects and isinstance(self.build_method(), BPTT)

    @property
    def selects(self) -> bool:
        """Whether the method is a coreset, which takes no steps."""
        return self.method in CORESETS

    def check_ranks(self, count: int) -> None:
        """Refuse several processes for a run whose classes depend on each other.

        Raises:
            UserError: saying why one process must have all classes.
        """
        if count == 1 or self.selects or self.scope in ("class", "group"):
            return
        reason = {
            "joint": "compares all classes with each other",
            "set": "trains its networks on the whole synthetic set",
        }[self.scope]
        raise UserError(
            f"{count} processes were started, but {self.method} {reason}, so that one process must "
            f"have them all; start it without torchrun"
        )

    @property
    def scope(self) -> Scope:
        """What a class's step depends on, of method and source.

        See :class:`m3d_fast.methods.Method`.
        """
        own = self.build_method().scope
        return "set" if own in ("class", "group") and self.networks_from == "synthetic" else own

    def count_in_group(self, num_classes: int) -> int:
        """Classes of a group whose losses or images depend on each other; 1 if they do not.

        Groups are equal, of consecutive classes: the largest divisor of ``num_classes`` that is at
        most ``group``. What a run computes does not depend on its chunks or ranks.

        Raises:
            UserError: if only groups of one class are equal.
        """
        if self.selects or not (self.build_method().grouped or self.decode == "basis"):
            return 1
        if self.scope == "joint":  # another part compares all of them
            return num_classes
        most = min(self.group, num_classes)
        size = next(size for size in range(most, 0, -1) if num_classes % size == 0)
        if size == 1:
            raise UserError(
                f"group: {num_classes} classes cannot be divided into equal groups of 2 to "
                f"{self.group}; give --group {num_classes}"
            )
        return size

    def build_method(self) -> Objective:
        """The objective, with its options and the terms added."""
        return add_terms(build_method(self.method, self.options), self.add)

    def open_images(self, split: str = "train", **changes: Any) -> RealImages:
        """Open a split of the run's data set as these settings say, on the host.

        Args:
            split: "train", without what the run held out, "held-out" or "test".
            changes: arguments of :func:`open_dataset` in the place of these settings or beside
                them; None keeps the setting.

        Raises:
            DataError: as :func:`open_dataset`.
        """
        own = {
            "root": self.data_root,
            "size": self.size,
            "loader": self.loader,
            "cache": self.cache,
            "workers": self.workers,
            "hold_out": self.hold_out,
        }
        changed = {name: value for name, value in changes.items() if value is not None}
        return open_dataset(self.dataset, split=split, **(own | changed))

    def build_basis(self, num_classes: int, image_shape: Sequence[int]) -> Basis | None:
        """What decodes the images of a run with this many classes; None where tiles do.

        Args:
            num_classes: of the data set.
            image_shape: ``(channels, H, W)``.

        Raises:
            UserError: if no basis fits.
        """
        if self.decode != "basis" or self.decoded is None:
            return None
        channels, height, width = image_shape
        side = -(-height // self.factor)
        shape = (self.ipc, channels, height, width)
        return Basis.fit(self.decoded, side, self.count_in_group(num_classes), shape)

    @property
    def needs_pool(self) -> bool:
        """Whether a pool of networks is trained before the run."""
        return self.networks_from == "pool" or self.pretrained

    @property
    def changes_rate(self) -> bool:
        """Whether the learning rate depends on the iteration."""
        return self.lr_schedule != "constant"

    def share_of_rate(self, iteration: int) -> float:
        """Share of ``lr_img`` that the images are stepped with in ``iteration``, from 0."""
        return SCHEDULES[self.lr_schedule](iteration, self.iterations)

    @property
    def decoded_per_class(self) -> int:
        """Synthetic images of a class after decoding."""
        return self.decoded or self.ipc * self.factor**2

    @property
    def synthetic_per_step(self) -> int:
        """Decoded images of a class in one step; of more, a random choice."""
        return min(self.decoded_per_class, self.build_method().max_synthetic)

    @property
    def images_through_network(self) -> int:
        """Images embedded in the whole run, counted for ten classes."""
        return 10 * (self.real_batch + self.synthetic_per_step) * self.iterations
