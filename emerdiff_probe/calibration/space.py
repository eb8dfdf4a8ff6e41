"""What a calibration may choose: settings of the modulation, their values in order, and sites that cannot differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

from diffusers.models.attention import BasicTransformerBlock

from emerdiff_probe.errors import InputError
from emerdiff_probe.models.addresses import ATTENTION, ATTENTION_KINDS
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.segmentation.configuration import EmerDiffConfig
from emerdiff_probe.segmentation.settings import STRENGTH
from emerdiff_probe.sites import Site, find_site, list_sites

Value = str | int | float
ROOTS = range(-4, 5)
"""Strengths that are tried: the preset's times the square root of ten to these powers."""
COARSE, LAYERS = 7, 16
"""Values of one setting, and layers, that are tried first, at most; then those between the best and its neighbours."""


class Setting(NamedTuple):
    """One way to push; the fields are option names. `injection` has its kinds between plus signs, "none" for none."""

    layer: str
    modulate_at: int
    strength: float
    placement: str
    injection: str
    steps: int

    @classmethod
    def of(cls, config: EmerDiffConfig) -> Setting:
        """That of a configuration that is resolved."""
        pushed = config.modulation
        kinds = "+".join(pushed.injection) or "none"
        return cls(
            pushed.layer,
            int(pushed.modulate_at),
            float(pushed.strength),
            pushed.placement,
            kinds,
            int(config.inversion.steps),
        )

    def options(self) -> dict[str, Any]:
        """By option names, as `EmerDiffConfig.change` takes them."""
        return {**self._asdict(), "injection": () if self.injection == "none" else tuple(self.injection.split("+"))}

    def change(self, name: str, value: Value) -> Setting:
        """The same with another value of one field."""
        return Setting(**{**self._asdict(), name: value})

    def differences(self, other: Setting) -> dict[str, Any]:
        """The options of this setting that are not the other's."""
        theirs = other.options()
        return {name: value for name, value in self.options().items() if value != theirs[name]}


@dataclass(frozen=True)
class Space:
    """The settings that a calibration chooses from.

    Attributes:
        preset: where the search begins.
        values: by name of a setting, in order; those that are not here stay the preset's.
        equal: for layers that cannot be told from others the names of all of them, itself among them; see
            `list_equal_layers`.
        grids: timesteps that there are, by number of steps.
    """

    preset: Setting
    values: Mapping[str, tuple[Value, ...]]
    equal: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    grids: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: ProbeModel, config: EmerDiffConfig, search: Sequence[str]) -> Space:
        """Of a model.

        Args:
            model: whose layers and timesteps there are.
            config: resolved; its own modulation is the preset.
            search: names of settings that may change.

        Raises:
            InputError: none, or one that cannot be searched.
        """
        unknown = [name for name in search if name not in Setting._fields]
        if unknown or not search:
            raise InputError(f"search {list(search)}; accepted: one or more of {', '.join(Setting._fields)}")
        preset = Setting.of(config)
        preset = preset.change("layer", find_site(model, preset.layer).name)
        grids = _grids(model, config)
        every: dict[str, tuple[Value, ...]] = {
            "layer": _layers(model, preset),
            "modulate_at": _timesteps(model, config),
            "strength": _strengths(preset.strength),
            "placement": ("after", "before"),
            "injection": _injections(model),
            "steps": tuple(grids),
        }
        return cls(preset, {name: every[name] for name in every if name in search}, list_equal_layers(model), grids)

    def unify(self, setting: Setting) -> Setting:
        """The setting under which one is measured that cannot differ from it: the preset's layer, or the first."""
        names = self.names(setting)
        return setting.change("layer", self.preset.layer if self.preset.layer in names else names[0])

    def names(self, setting: Setting) -> tuple[str, ...]:
        """The layers at which this setting cannot differ."""
        fixed = setting.placement == "after" and "cross" in setting.injection
        return self.equal.get(setting.layer, (setting.layer,)) if fixed else (setting.layer,)

    def variants(self, around: Setting, name: str) -> list[Setting]:
        """A setting with some values of one of its fields, from the least to the greatest; its own is among them."""
        values = self._at(around, name)
        own = values.index(getattr(around, name))
        stride = -(-len(values) // (LAYERS if name == "layer" else COARSE))
        chosen = range(own % stride, len(values), stride)
        return self._made(around, name, [values[place] for place in chosen])

    def refine(self, around: Setting, name: str, tried: Sequence[Setting]) -> list[Setting]:
        """The same with the values halfway from its own to the nearest that were tried; may be none."""
        values = self._at(around, name)
        known = sorted({values.index(each) for each in {getattr(one, name) for one in tried} if each in values})
        own = values.index(getattr(around, name))
        halfway = [(low + high) // 2 for low, high in pairwise(known) if own in {low, high}]
        return self._made(around, name, [values[place] for place in halfway if place not in known])

    def _at(self, around: Setting, name: str) -> list[Value]:
        """The values of a field; its own is one of them."""
        values, own = list(self.values[name]), getattr(around, name)
        if own not in values:
            values = sorted([*values, own]) if not isinstance(own, str) else [*values, own]
        return values

    def _made(self, around: Setting, name: str, values: Sequence[Value]) -> list[Setting]:
        made = dict.fromkeys(self.unify(around.change(name, value)) for value in values)
        return [one for one in made if one.modulate_at in self.grids.get(one.steps, (one.modulate_at,))]


def list_equal_layers(model: ProbeModel) -> dict[str, tuple[str, ...]]:
    """Layers at which an offset to the output is the same offset to the image, by name.

    In diffusers' plain transformer block self-attention, cross-attention and feedforward are each added to what they
    read. Cross-attention whose probabilities are injected gives the same whatever it reads, as its values are the
    text's, so an offset before it and one behind it are one. Blocks with gates on the way, with adapters between, or
    with self-attention in its place are left alone.
    """
    blocks: dict[str, list[Site]] = {}
    for site in list_sites(model, part="output"):
        if site.kind in {"self", "cross"} and site.layer:
            blocks.setdefault(site.layer.rpartition(".")[0], []).append(site)
    equal = dict[str, tuple[str, ...]]()
    for path, sites in blocks.items():
        block = model.denoiser.get_submodule(path)
        plain = (
            isinstance(block, BasicTransformerBlock)
            and block.norm_type == "layer_norm"
            and getattr(block, "fuser", None) is None
        )
        if plain and [site.kind for site in sites] == ["self", "cross"]:
            names = tuple(site.name for site in sites)
            equal |= dict.fromkeys(names, names)
    return equal


def _layers(model: ProbeModel, preset: Setting) -> tuple[str, ...]:
    """Outputs of all attention layers in the order in which they run; of equal ones one."""
    equal, taken = list_equal_layers(model), dict[str, None]()
    for site in list_sites(model, part="output"):
        if site.kind in ATTENTION:
            names = equal.get(site.name, (site.name,))
            taken[preset.layer if preset.layer in names else names[0]] = None
    return tuple(taken)


def _timesteps(model: ProbeModel, config: EmerDiffConfig) -> tuple[int, ...]:
    """The grid's, rising; without the last one where a single denoising step is too few for the readout."""
    grid = model.schedule(config.inversion.steps).timesteps
    own = config.modulation.modulate_at
    return tuple(sorted(timestep for timestep in grid if timestep != grid[-1] or timestep == own))


def _strengths(own: float) -> tuple[float, ...]:
    values = (own if root == 0 else float(f"{own * 10 ** (root / 2):.2g}") for root in ROOTS)
    return tuple(value for value in values if 0 < value <= STRENGTH)


def _injections(model: ProbeModel) -> tuple[str, ...]:
    """None, each kind of attention that has probabilities alone, and all of them."""
    found = {site.kind for site in list_sites(model, part="query")}
    kinds = [kind for kind in ATTENTION_KINDS if kind in found]
    return tuple(dict.fromkeys(("none", *kinds, "+".join(kinds) or "none")))


def _grids(model: ProbeModel, config: EmerDiffConfig) -> dict[int, tuple[int, ...]]:
    """Grids of half and twice as many steps, where they have the features' timesteps: the masks stay the same."""
    own, found = config.inversion.steps, dict[int, tuple[int, ...]]()
    for steps in (own // 2, own, own * 2):
        try:
            grid = tuple(model.schedule(steps).timesteps) if steps else ()
        except InputError:
            continue
        if steps == own or set(config.features.timesteps) <= set(grid):
            found[steps] = grid
    return found
