"""Which features make the best low-resolution masks: sites, timesteps, draws of noise, and what is done to them.

    python -m benchmarks.features --data world:24,first=700000 --clusters 12
    python -m benchmarks.features --data folder:PHOTOGRAPHS --every 5 --model FOLDER --clusters 10
    python -m benchmarks.features --emerdiff "preset; stage" --strengths 30,100,300,1000 …

Majority protocol; intervals by bootstrap over images, gains over `PRESET` on the same images. Masks and difference maps
are kept in the store, so that a run that was stopped goes on and another candidate takes its own time only.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd
import torch
import typer
from sklearn.decomposition import PCA
from torch import Tensor
from tqdm.auto import tqdm

from benchmarks.scores import difference, miou, rounded
from benchmarks.store import Arrays, folder_of, kept
from emerdiff_probe.data.sample import IGNORED, Sample
from emerdiff_probe.data.sources import open_data
from emerdiff_probe.metrics.intervals import bootstrap
from emerdiff_probe.metrics.overlaps import adjusted_rand, majority_confusion
from emerdiff_probe.models.loading import load_model
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.probe import ProbedImage
from emerdiff_probe.reading.features import cluster, combine, one_hot_masks, upsampled
from emerdiff_probe.segmentation.configuration import EmerDiffConfig, resolve_modulation
from emerdiff_probe.segmentation.sharpen import Sharpening, read_labels
from emerdiff_probe.sites import Site, list_sites

GRID = (1, 101, 201, 301, 401, 501, 601, 701, 801)
"""Timesteps that candidates are made of."""
SPREAD = (101, 301, 501, 701)
PARTS = ("query", "key", "value", "output")
PRESET = "preset"
"""What every candidate is compared with."""


class Candidate(NamedTuple):
    """Features that may be clustered.

    Attributes:
        sites: patterns of names; the coarsest grid with attention in the decoder but one is `{n}`.
        timesteps: of the features.
        draws: of noise at each.
        components: principal components that are kept, all when 0.
        weighted: whether every site and timestep counts by how much its own masks agree with those of the others.
    """

    sites: tuple[str, ...]
    timesteps: tuple[int, ...] = SPREAD
    draws: int = 4
    components: int = 0
    weighted: bool = False


def _parts(stage: str, kinds: Sequence[str] = ("self", "cross"), parts: Sequence[str] = PARTS) -> tuple[str, ...]:
    return tuple(f"{stage}.{kind}*.{part}" for kind in kinds for part in parts)


STAGE = _parts("up{n}")
CANDIDATES: Mapping[str, Candidate] = {
    PRESET: Candidate(("up{n}.self1.query",), (301,), 16),
    "preset, spread": Candidate(("up{n}.self1.query",)),
    "stage": Candidate(STAGE),
    "stage, 16 draws each": Candidate(STAGE, SPREAD, 16),
    "stage, 8 draws each": Candidate(STAGE, SPREAD, 8),
    "stage, 1 draw each": Candidate(STAGE, SPREAD, 1),
    "stage at 101": Candidate(STAGE, (101,), 16),
    "stage at 301": Candidate(STAGE, (301,), 16),
    "stage at 501": Candidate(STAGE, (501,), 16),
    "stage at 1-301": Candidate(STAGE, (1, 101, 201, 301)),
    "stage at 101, 301": Candidate(STAGE, (101, 301), 8),
    "stage at 301, 501": Candidate(STAGE, (301, 501), 8),
    "stage at 301, 601": Candidate(STAGE, (301, 601), 8),
    "stage at 201-501": Candidate(STAGE, (201, 301, 401, 501)),
    "stage at 301-601": Candidate(STAGE, (301, 401, 501, 601)),
    "stage at 101-501, 3": Candidate(STAGE, (101, 301, 501), 5),
    "stage at 301-701, 3": Candidate(STAGE, (301, 501, 701), 5),
    "stage at 101-801, 8": Candidate(STAGE, (101, 201, 301, 401, 501, 601, 701, 801), 2),
    "queries": Candidate(_parts("up{n}", parts=("query",))),
    "keys": Candidate(_parts("up{n}", parts=("key",))),
    "values": Candidate(_parts("up{n}", parts=("value",))),
    "outputs": Candidate(_parts("up{n}", parts=("output",))),
    "queries, keys": Candidate(_parts("up{n}", parts=("query", "key"))),
    "queries, values": Candidate(_parts("up{n}", parts=("query", "value"))),
    "no outputs": Candidate(_parts("up{n}", parts=("query", "key", "value"))),
    "self": Candidate(_parts("up{n}", ("self",))),
    "self, no outputs": Candidate(_parts("up{n}", ("self",), ("query", "key", "value"))),
    "cross": Candidate(_parts("up{n}", ("cross",))),
    "residual blocks": Candidate(("up{n}.resnet*",)),
    "all of the stage": Candidate(("up{n}.*",)),
    "encoder's stage": Candidate(_parts("down{n}")),
    "encoder's and decoder's stage": Candidate(_parts("*{n}")),
    "two grids, coarser": Candidate((*STAGE, *_parts("up{half}"))),
    "two grids, finer": Candidate((*STAGE, "up{twice}.resnet*")),
    "decoder": Candidate(_parts("up*")),
    "everything": Candidate(_parts("*")),
    "stage, 16 components": Candidate(STAGE, components=16),
    "stage, 64 components": Candidate(STAGE, components=64),
    "stage, by agreement": Candidate(STAGE, weighted=True),
}


class Picture:
    """A picture under the probe, inverted once for every number of draws."""

    def __init__(self, model: ProbeModel, config: EmerDiffConfig, image: np.ndarray) -> None:
        self.model, self.config, self.image = model, config, image
        self._probed: dict[int, ProbedImage] = {}

    def probed(self, draws: int) -> ProbedImage:
        """With features that are means over so many draws."""
        if draws not in self._probed:
            config = self.config.change(feature_draws=draws)
            self._probed[draws] = config.probe(self.model, self.image, start=max(GRID))
        return self._probed[draws]

    @cached_property
    def resolution(self) -> int:
        """Of the stage that is probed, half as fine as the latents."""
        return self.model.latent_side // 2

    def sites(self, candidate: Candidate) -> list[Site]:
        """Those that a candidate names."""
        n = self.resolution
        patterns = [pattern.format(n=n, half=n // 2, twice=2 * n) for pattern in candidate.sites]
        known = [site for site in list_sites(self.model) if site.holds_cells]
        return [site for site in known if any(fnmatchcase(site.name, pattern) for pattern in patterns)]

    def features(self, candidate: Candidate, clusters: int, *, afresh: bool = False) -> Tensor:
        """(cell, channel) of a candidate, on the finest grid of its sites."""
        probed, sites = self.probed(candidate.draws), self.sites(candidate)
        if afresh:
            probed = probed.afresh()
        for timestep in candidate.timesteps:
            probed.capture(sites, timestep)
        if candidate.weighted:
            found = _weigh(probed, sites, candidate.timesteps, clusters)
        else:
            found = probed.features(sites, candidate.timesteps)
        if candidate.components:
            found = torch.from_numpy(PCA(candidate.components, svd_solver="full").fit_transform(found.double().numpy()))
        return found

    def masks(self, candidate: Candidate, clusters: int) -> Arrays:
        """Low-resolution masks of a candidate."""
        grid = self.probed(candidate.draws).grid(self.sites(candidate))
        began = time.perf_counter()
        features = self.features(candidate, clusters)
        read = time.perf_counter()
        coarse = cluster(features, clusters, grid, seed=self.config.seed).astype(np.int32)
        return {"coarse": coarse, "seconds": np.array([read - began, time.perf_counter() - read])}

    def maps(self, coarse: np.ndarray, strength: float) -> Arrays:
        """Difference maps of low-resolution masks."""
        modulation = resolve_modulation(self.model, self.config.change(strength=strength))
        probed = self.probed(1)
        return {"maps": probed.difference_maps(coarse, modulation, smoothing=self.config.smoothing).numpy()}


def _weigh(probed: ProbedImage, sites: Sequence[Site], timesteps: Sequence[int], clusters: int) -> Tensor:
    """Features side by side, each site and timestep by the mean adjusted Rand index of its masks with the others'."""
    places = [(site, timestep) for site in sites for timestep in timesteps]
    grid = probed.grid(sites)
    coarse = [probed.low_resolution_masks(site, clusters, timestep) for site, timestep in places]
    maps = [upsampled(each, *grid) for each in coarse]
    agreement = np.array([[adjusted_rand(one, other) for other in maps] for one in maps])
    weights = (agreement.sum(1) - 1) / (len(maps) - 1)
    parts = combine(*((probed.features(site, timestep), probed.grid(site)) for site, timestep in places))
    channels = [probed.features(site, timestep).shape[1] for site, timestep in places]
    return parts * torch.from_numpy(np.repeat(np.maximum(weights, 0) ** 0.5, channels)).float()


READINGS: tuple[Sharpening, ...] = ("none", "wls")


def confusion_of(labels: np.ndarray, sample: Sample, classes: int) -> np.ndarray:
    """Of a picture under the majority protocol."""
    return majority_confusion(labels, sample.truth(), classes, ignore_index=IGNORED)


def report(confusions: Mapping[str, Sequence[np.ndarray]], reference: str) -> pd.DataFrame:
    """A row for each: mIoU, and the gain over the reference with its paired interval."""
    scores = {name: miou(each) for name, each in confusions.items()}
    count = len(confusions[reference])
    rows = []
    for name, statistic in scores.items():
        gain = bootstrap(difference(statistic, scores[reference]), count)
        value = round(float(statistic(np.ones((1, count)))[0]), 2)
        rows.append({"features": name, "miou": value, **rounded(gain, "gain")})
    return pd.DataFrame(rows)


def price(picture: Picture, names: Sequence[str], clusters: int) -> pd.DataFrame:
    """Processor seconds of a candidate's features and clustering from nothing, and what its features hold."""
    rows = []
    for name in names:
        candidate = CANDIDATES[name]
        grid, times = picture.probed(candidate.draws).grid(picture.sites(candidate)), []
        for _ in range(3):
            began = time.process_time()
            features = picture.features(candidate, clusters, afresh=True)
            read = time.process_time()
            cluster(features, clusters, grid)
            times.append((read - began, time.process_time() - read))
        read, clustered = np.median(times, axis=0)
        rows.append({"features": name, "channels": features.shape[1], "seconds": round(float(read), 2),
                     "k-means": round(float(clustered), 2), "MiB": round(features.numel() * 4 / 2**20, 1)})  # fmt: skip
    return pd.DataFrame(rows)


def main(
    data: Annotated[str, typer.Option(help="Labelled pictures, as `evaluate` takes them.")] = "world:24,first=700000",
    model: Annotated[str, typer.Option(help="'pocket', a hub id, or a local folder.")] = "pocket",
    clusters: Annotated[int, typer.Option(help="Number of masks.")] = 12,
    every: Annotated[int, typer.Option(help="Take every so many-th picture.")] = 1,
    candidates: Annotated[str, typer.Option(help="Names in `CANDIDATES`, apart by semicolons; all by default.")] = "",
    emerdiff: Annotated[str, typer.Option(help="Of these also fast EmerDiff, apart by semicolons.")] = "",
    strengths: Annotated[str, typer.Option(help="Of the modulation; the model's own by default.")] = "",
    prices: Annotated[bool, typer.Option("--prices", help="Seconds and memory in the place of scores.")] = False,
    device: Annotated[str | None, typer.Option()] = None,
    store: Annotated[Path, typer.Option(help="Where masks and difference maps are kept.")] = Path("out/features"),
) -> None:
    """Print the tables and, as the last line, one JSON object."""
    probed = load_model(model, device=device, dtype="float32")
    samples = open_data(data, side=probed.native_size)[::every]
    config = EmerDiffConfig.fast(probed, clusters=clusters)
    refined = [name.strip() for name in emerdiff.split(";") if name.strip()]
    names = [name.strip() for name in candidates.split(";") if name.strip()] or list(CANDIDATES)
    names = list(dict.fromkeys((PRESET, *refined, *names)))
    pushes = [float(value) for value in strengths.split(",") if value] or [config.modulation.strength]
    if prices:
        print(price(Picture(probed, config, samples[0].pixels()), names, clusters).to_string(index=False))
        return
    masks: dict[str, list[np.ndarray]] = {name: [] for name in names}
    labels: dict[str, list[np.ndarray]] = {}
    identity = probed.fingerprint, samples.name, clusters, config.inversion.steps, config.seed
    for sample in tqdm(samples, desc="images"):
        image = sample.pixels()
        picture = Picture(probed, config, image)
        confusion = partial(confusion_of, sample=sample, classes=len(samples.classes))
        for name in names:
            folder = folder_of(store, *identity, CANDIDATES[name]._asdict())
            held = kept(folder / f"{sample.name}.safetensors", partial(picture.masks, CANDIDATES[name], clusters))
            masks[name].append(confusion(upsampled(held["coarse"], *image.shape[:2])))
            if name in refined:
                sharp = read_labels(one_hot_masks(held["coarse"]), image, "wls")[0]
                masks.setdefault(f"{name}, wls", []).append(confusion(sharp))
            for push in pushes if name in refined else ():
                asked = config.change(strength=push).to_dict()
                place = folder_of(store, *identity, CANDIDATES[name]._asdict(), asked["modulation"], asked["readout"])
                maps = kept(place / f"{sample.name}.safetensors", partial(picture.maps, held["coarse"], push))["maps"]
                for reading in READINGS:
                    found = read_labels(torch.from_numpy(maps), image, reading)[0]
                    labels.setdefault(f"{name}, {push:g}, {reading}", []).append(confusion(found))
    print(f"majority protocol, {len(samples)} images of {samples.name}, K = {clusters}, {probed!r}\n")
    tables = {"masks": report(masks, PRESET)}
    if labels:
        tables["emerdiff"] = report(labels, next(iter(labels)))
        for name in refined:
            asked_of = [f"{name}, {push:g}, {reading}" for push in pushes for reading in READINGS]
            own = {reading: labels[reading] for reading in asked_of}
            tables[f"{name} over its masks"] = report({"masks": masks[name], **own}, "masks")
            sharpened = {reading: found for reading, found in own.items() if reading.endswith("wls")}
            tables[f"{name}, wls"] = report(sharpened, next(iter(sharpened)))
            tables[f"{name} over its masks, wls"] = report(
                {"masks, wls": masks[f"{name}, wls"], **sharpened}, "masks, wls"
            )
    for title, table in tables.items():
        print(f"{title}\n{table.to_string(index=False)}\n")
    rows = {title: table.to_dict("records") for title, table in tables.items()}
    print(json.dumps({"clusters": clusters, "images": len(samples), **rows}))


if __name__ == "__main__":
    typer.run(main)
