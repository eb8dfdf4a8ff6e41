"""The settings of EmerDiff as values: parts under one name each, and every leaf under one option name.

Loads no torch, so that the command line can make its options from the fields.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from emerdiff_probe.checks import LARGEST, is_integer, is_one_of
from emerdiff_probe.errors import InputError
from emerdiff_probe.models.addresses import ATTENTION_KINDS, AttentionKind
from emerdiff_probe.reading.readout import Readout
from emerdiff_probe.segmentation.sharpen import SHARPENINGS, Sharpening

if TYPE_CHECKING:
    from emerdiff_probe.interventions import Placement
    from emerdiff_probe.trajectories.inversion import InversionMethod

DRAWS, STRENGTH, SMOOTHING = 1024, 1e9, 1e4
"""The most of each: of draws of noise, of the strength, and of the Gaussian's standard deviation in pixels."""
OPEN: Any = None
"""Left to the model: the types of fields are those that they have once `EmerDiffConfig.resolve` has filled them in."""


@dataclass(frozen=True)
class FeatureSettings:
    """Which features are clustered; None is left to the model.

    Attributes:
        sites: names of sites, or patterns of names such as "up16.*", which take every site with a grid; one alone may
            be given as text.
        timesteps: the paper's t_f, or several; one alone may be given as a number.
        draws: of the inversion's noise that features are averaged over, 1 or more (the paper's is 1).

    Raises:
        InputError: a value out of range.
    """

    sites: tuple[str, ...] = OPEN
    timesteps: tuple[int, ...] = OPEN
    draws: int = OPEN

    def __post_init__(self) -> None:
        _take_plain_values(self)
        for name, single in (("sites", str), ("timesteps", int)):
            value = getattr(self, name)
            if isinstance(value, single) and not isinstance(value, bool):
                object.__setattr__(self, name, (value,))
            elif isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, str):
                object.__setattr__(self, name, tuple(_plain_value(each) for each in value))
        _check(
            self,
            "feature_",
            [
                ("sites", _are(self.sites, lambda site: isinstance(site, str) and bool(site)), "names of sites"),
                ("timesteps", _are(self.timesteps, lambda value: is_integer(value, 0)), "integers, 0 or more"),
                ("draws", is_integer(self.draws, 1, DRAWS), f"an integer, 1 or more, up to {DRAWS}"),
            ],
        )


@dataclass(frozen=True)
class ModulationSettings:
    """What is pushed, when and how; None is left to the model.

    Attributes:
        layer: name of a site of the attention layer that is modulated.
        modulate_at: the paper's t_m; the inversion starts there.
        strength: the paper's lambda, above 0.
        placement: offset "after" or "before" the layer's output projection.
        injection: kinds of attention layers whose attention is injected, of "self", "cross" and "joint"; empty for
            none.

    Raises:
        InputError: a value out of range.
    """

    layer: str = OPEN
    modulate_at: int = OPEN
    strength: float = OPEN
    placement: Placement = OPEN
    injection: tuple[AttentionKind, ...] = OPEN

    def __post_init__(self) -> None:
        _take_plain_values(self)
        kinds = self.injection
        listed = (
            isinstance(kinds, Collection)
            and not isinstance(kinds, str)
            and all(is_one_of(kind, ATTENTION_KINDS) for kind in kinds)
        )
        if listed:
            object.__setattr__(self, "injection", tuple(kinds))
        _check(
            self,
            "",
            [
                ("layer", isinstance(self.layer, str) and bool(self.layer), "the name of a site"),
                ("modulate_at", is_integer(self.modulate_at, 0), "an integer, 0 or more"),
                (
                    "strength",
                    _is_finite(self.strength) and 0 < self.strength <= STRENGTH,
                    f"a finite number above 0, up to {STRENGTH:g}",
                ),
                ("placement", is_one_of(self.placement, ("after", "before")), "'after', 'before'"),
                ("injection", listed, "any of 'self', 'cross', 'joint', or () for none"),
            ],
        )


@dataclass(frozen=True)
class InversionSettings:
    """How the image is inverted; None is left to the model.

    Attributes:
        steps: of the scheduler's grid.
        method: "ddpm" (edit-friendly, the paper's) or "ddim".
        prompt: text for the denoiser; the paper's is empty.

    Raises:
        InputError: a value out of range.
    """

    steps: int = OPEN
    method: InversionMethod = OPEN
    prompt: str = OPEN

    def __post_init__(self) -> None:
        _take_plain_values(self)
        _check(
            self,
            "",
            [
                ("steps", is_integer(self.steps, 1), "an integer, 1 or more"),
                ("method", is_one_of(self.method, ("ddpm", "ddim")), "'ddpm', 'ddim'"),
                ("prompt", isinstance(self.prompt, str), "text"),
            ],
        )


@dataclass(frozen=True)
class Settings:
    """Every choice of the method. What is None is left open: `EmerDiffConfig.resolve` fills it in, and nothing else.

    Every leaf has one option name, in `OPTIONS`: its own, with "feature_" before those of `features`. `change`,
    `EmerDiffConfig.for_model` and the command line take these names; `change` also takes whole parts.

    Attributes:
        clusters: number of masks K, 1 or more; or "auto", or the name of a criterion in `CRITERIA` that finds it.
        features: which features are clustered.
        modulation: what is pushed, when and how.
        readout: how the response is read, exactly or by approximations.
        inversion: how the image is inverted.
        smoothing: standard deviation in pixels of the Gaussian over difference maps (width is ours, not the paper's).
        sharpen: how labels take the picture's own borders: "none" (the paper's), "wls", "bilateral" or "crf"; see
            `read_labels`.
        seed: of the inversion's noise, of k-means and of the readout's sign patterns.

    Raises:
        InputError: a value out of range.
    """

    clusters: int | str = OPEN
    features: FeatureSettings = field(default_factory=FeatureSettings)
    modulation: ModulationSettings = field(default_factory=ModulationSettings)
    readout: Readout = OPEN
    inversion: InversionSettings = field(default_factory=InversionSettings)
    smoothing: float = OPEN
    sharpen: Sharpening = OPEN
    seed: int = OPEN

    def __post_init__(self) -> None:
        _take_plain_values(self)
        for name, kind in PARTS.items():
            value = getattr(self, name)
            if not isinstance(value, kind) and not (name == "readout" and value is OPEN):
                raise InputError(f"{name} {value!r}; accepted: a {kind.__name__}")
        _check(
            self,
            "",
            [
                (
                    "clusters",
                    is_integer(self.clusters, 1) or isinstance(self.clusters, str),
                    "an integer, 1 or more, or a name",
                ),
                (
                    "smoothing",
                    _is_finite(self.smoothing) and 0 <= self.smoothing <= SMOOTHING,
                    f"a finite number, 0 or more, up to {SMOOTHING:g}",
                ),
                ("sharpen", is_one_of(self.sharpen, SHARPENINGS), ", ".join(map(repr, SHARPENINGS))),
                ("seed", is_integer(self.seed, 0), f"an integer, 0 or more, up to {LARGEST}"),
            ],
        )

    def options(self) -> dict[str, Any]:
        """What is not left open, by option names."""
        leaves = {}
        for name, (part, leaf) in OPTIONS.items():
            holder = self if part is None else getattr(self, part)
            if holder is not OPEN and (part == "readout" or getattr(holder, leaf) is not OPEN):
                leaves[name] = getattr(holder, leaf)
        return leaves

    @property
    def is_resolved(self) -> bool:
        """Whether nothing is left open."""
        return len(self.options()) == len(OPTIONS)

    def change(self, **options: Any) -> Self:
        """A copy with these settings, by option names or whole parts; None leaves one open again.

        Raises:
            InputError: no such option, or a value out of range.
        """
        unknown = [name for name in options if name not in OPTIONS and name not in PARTS]
        if unknown:
            near = difflib.get_close_matches(unknown[0], (*OPTIONS, *PARTS), n=3)
            hint = f"near ones: {', '.join(near)}" if near else f"accepted: {', '.join((*OPTIONS, *PARTS))}"
            raise InputError(f"no such setting: {', '.join(unknown)}; {hint}")
        options = {name: _plain_value(value) for name, value in options.items()}
        changed = {name: value for name, value in options.items() if name in PARTS}
        for part, kind in PARTS.items():
            leaves = {OPTIONS[name][1]: value for name, value in options.items() if OPTIONS.get(name, ("",))[0] == part}
            if leaves:
                base = changed.get(part, getattr(self, part))
                changed[part] = kind(**leaves) if base is OPEN else replace(base, **leaves)
        own = {name: value for name, value in options.items() if name in OPTIONS and OPTIONS[name][0] is None}
        return replace(self, **changed, **own)

    def fill(self, options: Mapping[str, Any]) -> Self:
        """A copy in which what is left open has these settings, by option names; what was given stays.

        The readout is one setting: it is filled in as a whole, or not at all.
        """
        given = self.options()
        taken = {
            name: value
            for name, value in options.items()
            if name not in given and not (self.readout is not OPEN and OPTIONS[name][0] == "readout")
        }
        if self.inversion.method == "ddim" or taken.get("method") == "ddim":
            taken |= {"feature_draws": 1} if "feature_draws" in taken else {}  # it draws no noise
        return self.change(**taken)

    @property
    def start(self) -> int:
        """The highest timestep that is needed, where the inversion begins; of a configuration that is resolved."""
        return max(self.modulation.modulate_at, *self.features.timesteps)

    @property
    def given_clusters(self) -> int:
        """The number of masks, for what takes no other.

        Raises:
            InputError: it is to be found for every image.
        """
        if not is_integer(self.clusters, 1):
            raise InputError(f"clusters {self.clusters!r}; accepted here: an integer, 1 or more")
        return int(self.clusters)

    def to_dict(self) -> dict[str, Any]:
        """Settings as JSON and TOML hold them: a table a part; what is left open, or None, is left out."""
        return _plain(asdict(self))

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """The configuration that `to_dict` gave; options by their own names are taken, too.

        Raises:
            InputError: a setting that does not exist, or a value out of range.
        """
        options: dict[str, Any] = {}
        for name, value in settings.items():
            if name in PARTS and isinstance(value, Mapping):
                prefix = PREFIXES.get(name, "")
                unknown = [leaf for leaf in value if OPTIONS.get(prefix + leaf, ("",))[0] != name]
                if unknown:
                    raise InputError(f"no such setting: {', '.join(f'{name}.{leaf}' for leaf in unknown)}")
                options |= {prefix + leaf: held for leaf, held in value.items()}
            else:
                options[name] = value
        return cls().change(**options)


PARTS: Mapping[str, Any] = MappingProxyType(
    {
        "features": FeatureSettings,
        "modulation": ModulationSettings,
        "readout": Readout,
        "inversion": InversionSettings,
    }
)
"""The parts of `Settings` that are values of their own."""
PREFIXES: Mapping[str, str] = MappingProxyType({"features": "feature_"})
"""What stands before the names of a part's fields in option names."""
OPTIONS: Mapping[str, tuple[str | None, str]] = MappingProxyType(
    {PREFIXES.get(part, "") + leaf.name: (part, leaf.name) for part, kind in PARTS.items() for leaf in fields(kind)}
    | {leaf.name: (None, leaf.name) for leaf in fields(Settings) if leaf.name not in PARTS}
)
"""For every option name the part that it lies in (None: the configuration itself) and the name of the field there."""


def _plain_value(value: Any) -> Any:
    """The value itself, or the number that one of NumPy is: a loop over np.arange gives them, JSON takes none."""
    return value.item() if isinstance(value, np.generic) else value


def _take_plain_values(settings: Any) -> None:
    for known in fields(settings):
        object.__setattr__(settings, known.name, _plain_value(getattr(settings, known.name)))


def _check(settings: Any, prefix: str, checks: Sequence[tuple[str, bool, str]]) -> None:
    """Refuse the first value, by its option name, that is neither open nor holds."""
    for name, holds, accepted in checks:
        value = getattr(settings, name)
        if value is not OPEN and not holds:
            raise InputError(f"{prefix}{name} {value!r}; accepted: {accepted}")


def _are(values: object, holds: Any) -> bool:
    """Whether these are one or more different values, each of which holds."""
    return (
        isinstance(values, tuple)
        and bool(values)
        and all(holds(value) for value in values)
        and len(set(values)) == len(values)
    )


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and bool(np.isfinite(value))


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            if held := _plain(value):
                plain[name] = held
        elif value is not OPEN:
            plain[name] = list(value) if isinstance(value, tuple) else value
    return plain
