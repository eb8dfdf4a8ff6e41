"""Finding where to push and how hard on one's own pictures, without labels."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from emerdiff_probe.calibration.job import CalibrationJob
from emerdiff_probe.calibration.result import POINTS, Calibration
from emerdiff_probe.calibration.search import Search
from emerdiff_probe.calibration.space import Setting, Space
from emerdiff_probe.checks import is_integer
from emerdiff_probe.data.dataset import DataSet
from emerdiff_probe.data.pictures import Pictures
from emerdiff_probe.data.sources import open_data
from emerdiff_probe.errors import InputError
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.runs.run import write_to_stderr
from emerdiff_probe.segmentation.configuration import EmerDiffConfig, check_config
from emerdiff_probe.segmentation.presets import approximations


def calibrate(
    model: ProbeModel,
    data: DataSet | str | Path | Sequence[str | Path | Image.Image | np.ndarray],
    config: EmerDiffConfig | None = None,
    *,
    images: int = 12,
    minutes: float = 10.0,
    search: Sequence[str] | None = None,
    store: str | Path | None = None,
    seeds: bool = False,
    progress: bool = False,
    warn: Callable[[str], None] = write_to_stderr,
) -> Calibration:
    """Find the layer, timestep and strength of the modulation on pictures that need no labels.

    Settings are compared by how much more of the pictures' colour variance EmerDiff's plain labels explain than the
    enlarged low-resolution masks that they are made of; the masks are the same for all. Strength, timestep and layer
    are searched one after the other until nothing gets better, then placement, injection and the number of steps;
    the variants of each are halved while pictures are added. At last, whatever time is left, the best is held against
    denoisers of random weights, which must not do as well. What these pictures cannot tell from the preset leaves the
    preset as it is. Where labels will be sharpened, a setting must not explain less than the preset by those, either.

    Args:
        model: from `load_model`.
        data: a data set, its description as `open_data` takes it, a folder of pictures, or pictures as `load_image`
            takes them. Labels are not used to choose; where there are some, criteria are held against them.
        config: settings; what of the modulation it says stays as it is, what it leaves open is searched.
        images: how many pictures are used, evenly spread over the data.
        minutes: of measuring, at most; `math.inf` for as many as it takes.
        search: names of settings to search, in the place of those that `config` leaves open: "layer", "modulate_at",
            "strength", "placement", "injection", "steps".
        store: folder of the records, from which a search that was stopped goes on; not kept when None.
        seeds: also measure how labels agree under two draws of the noise; takes twice as long.
        progress: show a progress bar with the best so far.
        warn: told of pictures that are skipped.

    Raises:
        InputError: no pictures, nothing to search, a number of masks that is to be found, or a store of something else.
        SiteError, TimestepError: settings that the model does not have.
    """
    if not is_integer(images, 1) or not minutes > 0:
        raise InputError(f"{images!r} images in {minutes!r} minutes; accepted: 1 or more in more than 0")
    config = config or EmerDiffConfig()
    open_names = [name for name in Setting._fields if name not in config.options()]
    wanted = open_names if search is None else list(search)
    if not wanted:
        raise InputError(
            "nothing is left open to search; accepted: EmerDiffConfig(…) without layer, modulate_at or strength "
            "(`for_model` fills them in), or search=('layer', 'modulate_at', 'strength')"
        )
    base = config.resolve(model)
    check_config(model, base, model.native_size, model.native_size)
    base.given_clusters  # noqa: B018 - refuses a number that is to be found
    samples = _spread(open_pictures(data, model), images)
    readout = {} if config.options().keys() & {"compare"} else approximations("fast", model)
    measured = base.change(**readout)
    space = Space.of(model, measured, wanted)
    timesteps = [int(value) for value in space.values.get("modulate_at", ())]
    start = max([*timesteps, base.start])
    kept = tempfile.TemporaryDirectory() if store is None else nullcontext(str(store))
    total = None if math.isinf(minutes) else round(60 * minutes)
    with kept as folder, tqdm(total=total, disable=not progress, desc="calibrate", unit="s") as bar:

        def show(setting: Setting, value: float) -> None:
            changed = setting.differences(space.unify(space.preset))
            bar.n = min(round(found.used, 1), math.inf if total is None else total)
            told = ", ".join(f"{name} {given}" for name, given in changed.items()) or "the preset"
            bar.set_postfix_str(f"best {POINTS * value:+.1f} points: {told}")

        job = CalibrationJob(
            measured,
            start,
            len(samples.classes) if samples.labelled else 0,
            seeds,
            tell=lambda spent: _advance(bar, spent),
        )
        found = Search(model, samples, space, job, Path(folder), 60 * minutes, warn, show)
        finished = found.run()
        known = found.records[space.unify(space.preset)]
        result = Calibration(
            base=base,
            space=space,
            records=found.records,
            pictures=tuple(name for name in samples.names if name in known),
            skipped=found.skipped,
            finished=finished,
            seconds=found.used,
            labelled=bool(job.classes),
            store=None if store is None else Path(store),
        )
        if result.leads or (finished and result.gain(result.best).low > 0):
            result = replace(result, control=found.control(result.best, result.pictures))
    return result


def _advance(bar: tqdm, seconds: float) -> None:
    bar.n = round(min(bar.n + seconds, math.inf if bar.total is None else bar.total), 1)
    bar.update(0)


def open_pictures(
    data: DataSet | str | Path | Sequence[str | Path | Image.Image | np.ndarray], model: ProbeModel
) -> DataSet:
    """What `calibrate` takes for data, as a data set."""
    if isinstance(data, DataSet):
        return data
    if isinstance(data, str | Path):
        described = ":" in str(data) or (Path(data) / "dataset.toml").is_file()
        return open_data(str(data) if described else f"images:{data}", side=model.native_size)
    return Pictures.of(data)


def _spread(data: DataSet, images: int) -> DataSet:
    """So many samples, evenly spread."""
    return data[:: max(1, len(data) // images)][:images]
