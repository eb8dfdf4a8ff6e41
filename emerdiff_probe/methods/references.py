"""Upper references as methods: trained on a data set of their own when they are first needed, then kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from safetensors.torch import load_file, save_file

from emerdiff_probe.data.dataset import DataSet
from emerdiff_probe.errors import InputError, LabelError
from emerdiff_probe.files import write_whole
from emerdiff_probe.methods.choices import middle_timestep
from emerdiff_probe.methods.interface import Counts
from emerdiff_probe.methods.supervised import (
    LinearProbe,
    ProbeTraining,
    SupervisedUNet,
    UNet,
    UNetTraining,
    train_linear_probe,
    train_unet,
)
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.segmentation.configuration import EmerDiffConfig, find_feature_sites


@dataclass(frozen=True, eq=False)
class Reference:
    """A supervised segmenter that is yet to be trained.

    Attributes:
        training: of a linear probe or of a U-Net, and how.
        data: to train on, with labels. None of its images may be evaluated.

    Raises:
        InputError: data without labels.
    """

    training: ProbeTraining | UNetTraining
    data: DataSet
    counts: ClassVar[Counts] = "own"

    def __post_init__(self) -> None:
        if not self.data.labelled:
            raise InputError(f"{self.data!r}: nothing to train {self.name} on; accepted: a data set with labels")

    @property
    def name(self) -> str:
        """That of the segmenter that comes out."""
        return LinearProbe.name if isinstance(self.training, ProbeTraining) else SupervisedUNet.name

    def identity(self) -> dict[str, Any]:
        """What must be the same for a trained segmenter and its results to be used again, as JSON values."""
        names = self.data.names
        stamps = [self.data.stamp(place) for place in range(len(names))]
        return {
            "training": asdict(self.training),
            **self.data.identity(),
            "images": [names[0], names[-1], len(names)],
            "files": hashlib.sha256(str(stamps).encode()).hexdigest()[:16] if any(stamps) else None,
        }

    def trained(
        self,
        model: ProbeModel,
        config: EmerDiffConfig,
        weights: Path,
        *,
        progress: bool = False,
        warn: Callable[[str], None] = print,
    ) -> LinearProbe | SupervisedUNet:
        """The segmenter: read from a safetensors file, or trained and written there.

        Args:
            model: whose features a linear probe sees; a U-Net is trained on its device.
            config: how images are inverted for a linear probe, and which features it sees by default.
            weights: the file.
            progress: show a progress bar over steps.
            warn: told of training images that cannot be read and are left out.

        Raises:
            InputError: no image can be read, or as `train_linear_probe` and `train_unet`.
            LabelError: labels that are no class as the data is described.
        """
        if not weights.exists():
            train = self._probe_weights if isinstance(self.training, ProbeTraining) else self._unet_weights
            write_whole(weights, partial(save_file, train(model, config, progress, warn)))
        tensors = load_file(weights)
        if isinstance(self.training, ProbeTraining):
            sites, timestep = self._features(model, config)
            return LinearProbe(tuple(tensors[site] for site in sites), tensors["bias"], sites, timestep)
        network = UNet(len(self.data.classes), self.training.width, self.training.levels, self.training.scale)
        network.load_state_dict(tensors)
        return SupervisedUNet(network.to(model.device).eval().requires_grad_(False), self.training)

    def _features(self, model: ProbeModel, config: EmerDiffConfig) -> tuple[tuple[str, ...], int]:
        """Sites and timestep of what a linear probe sees: what EmerDiff clusters, where nothing else is asked for."""
        assert isinstance(self.training, ProbeTraining)
        named = config if self.training.sites is None else config.change(feature_sites=self.training.sites)
        sites = tuple(site.name for site in find_feature_sites(model, named))
        return sites, middle_timestep(config) if self.training.timestep is None else self.training.timestep

    def _probe_weights(
        self, model: ProbeModel, config: EmerDiffConfig, progress: bool, warn: Callable[[str], None]
    ) -> dict[str, Any]:
        assert isinstance(self.training, ProbeTraining)
        sites, timestep = self._features(model, config)
        samples = ((config.probe(model, image, start=timestep), labels) for image, labels in self._readable(warn))
        training = replace(self.training, sites=sites, timestep=timestep)
        made = train_linear_probe(samples, len(self.data.classes), training, progress=progress)
        by_site = zip(made.sites, made.weights, strict=True)
        return {"bias": made.bias} | {site: weights.contiguous() for site, weights in by_site}

    def _unet_weights(
        self, model: ProbeModel, config: EmerDiffConfig, progress: bool, warn: Callable[[str], None]
    ) -> dict[str, Any]:
        assert isinstance(self.training, UNetTraining)
        samples = list(self._readable(warn))
        made = train_unet(samples, len(self.data.classes), self.training, device=model.device, progress=progress)
        return {name: tensor.contiguous() for name, tensor in made.network.state_dict().items()}

    def _readable(self, warn: Callable[[str], None]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for place, name in enumerate(self.data.names):
            try:
                sample = self.data[place]
                pixels = sample.pixels()
            except LabelError:  # what was understood of the other labels may be wrong, too
                raise
            except InputError as error:
                warn(f"{name} is not trained on: {error}")
                continue
            yield pixels, sample.truth()
