"""The command line itself, what several verbs ask for, and the options that are made from the settings' fields."""

from __future__ import annotations

import functools
import inspect
import itertools
import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emerdiff_probe.errors import InputError
from emerdiff_probe.segmentation.settings import OPTIONS, PARTS, Settings

if TYPE_CHECKING:
    from emerdiff_probe.models.probe_model import ProbeModel
    from emerdiff_probe.segmentation.configuration import EmerDiffConfig

app = typer.Typer(
    name="emerdiff-probe",
    help="Find out what a pretrained diffusion model knows about the pixels it paints.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda or mps; the fastest that is there by default.")]


FLAGS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "feature_sites": ("--feature-layer", "--feature-sites"),
        "feature_timesteps": ("--feature-timestep", "--feature-timesteps"),
        "method": ("--inversion",),  # evaluate has methods of its own
    }
)
"""Flags of settings that are not just their option names."""
APPROXIMATE: Mapping[str, str] = MappingProxyType(
    {
        "fast": "Several times as fast and nearly as good, by approximations.",
        "draft": "As fast as two denoising steps are, for a first look.",
    }
)
"""Flags of the approximate modes, and their help."""
GROUP = "Settings of EmerDiff; what is not given is the best known for the model"


@dataclass(frozen=True)
class GivenSettings:
    """What the command line says about EmerDiff, with nothing filled in.

    Attributes:
        options: values by option name, as text; those of verbs that take lists hold several.
        file: the settings that `--config` names.
        mode: the approximate mode that is asked for, "fast" or "draft"; None for none.
    """

    options: Mapping[str, str] = field(default_factory=dict)
    file: Path | None = None
    mode: str | None = None

    def open_config(self, model: ProbeModel | None = None, **options: Any) -> EmerDiffConfig:
        """These settings, and further ones by option names; what is left open is not filled in.

        Options overrule the approximate mode, which is as far as the model has it, and both overrule the file.

        Raises:
            InputError: a value out of range, or a file that holds no settings.
        """
        given = {name: parse_setting(name, text) for name, text in self.options.items()}
        return self._make(given | options, model)

    def config(self, model: ProbeModel, **options: Any) -> EmerDiffConfig:
        """These settings, and further ones by option names; what is left open is filled in by the model."""
        given = {name: parse_setting(name, text) for name, text in self.options.items()}
        return self._make(given | options, model).resolve(model)

    def variants(self, model: ProbeModel | None = None) -> list[dict[str, Any]]:
        """Settings by option name for every combination of the values in lists.

        Values stand between commas, or between semicolons where one value has commas (`--feature-layer "a,b;c"`).

        Args:
            model: whose layers a pattern of `--layer` stands for; a pattern is one value when None.
        """
        axes: dict[str, list[Any]] = {}
        for name, text in self.options.items():
            several = text.split(";" if is_list(name) else ",") if name != "prompt" else [text]
            axes[name] = [parse_setting(name, each.strip()) for each in several]
            if name == "layer" and model is not None:
                axes[name] = [layer for pattern in axes[name] for layer in find_layers(model, pattern)]
        return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]

    def shared_config(self, model: ProbeModel, **options: Any) -> EmerDiffConfig:
        """As `config`, with the settings that all combinations share; those with several values are the model's."""
        variants = self.variants(model)
        alike = {name: value for name, value in variants[0].items() if all(each[name] == value for each in variants)}
        return self._make(alike | options, model).resolve(model)

    def open_configs(self, model: ProbeModel | None = None, **options: Any) -> list[EmerDiffConfig]:
        """As `open_config`, one for every combination of the values in lists."""
        return [self._make(variant | options, model) for variant in self.variants(model)]

    def _make(self, options: Mapping[str, Any], model: ProbeModel | None) -> EmerDiffConfig:
        from emerdiff_probe.segmentation.configuration import EmerDiffConfig
        from emerdiff_probe.segmentation.presets import MODES, approximations

        config = EmerDiffConfig() if self.file is None else EmerDiffConfig.from_dict(read_settings(self.file))
        if self.mode is None:
            return config.change(**options)
        approximate = MODES[self.mode] if model is None else approximations(self.mode, model)
        return config.change(**{**approximate, **options})


def take_settings(
    *, but: Sequence[str] = (), lists: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for every setting, and `--config`, `--fast` and `--draft`; it gets them as `settings`.

    Values are checked, and the file is read, before the command is run.

    Args:
        but: option names that the command asks for itself.
        lists: whether options take several values; else one.
    """
    names = [name for name in OPTIONS if name not in but]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**arguments: Any) -> None:
            given = {name: arguments.pop(f"setting_{name}") for name in names}
            told = {name: text for name, text in given.items() if text is not None}
            modes = [mode for mode in APPROXIMATE if arguments.pop(mode)]
            if len(modes) > 1:
                raise InputError("--fast and --draft; accepted: one of both")
            settings = GivenSettings(told, arguments.pop("config"), *modes)
            settings.open_configs() if lists else settings.open_config()
            command(**arguments, settings=settings)

        asked = inspect.signature(command, eval_str=True).parameters.values()
        kept = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in asked if each.name != "settings"]
        extra = {
            "config": Annotated[
                Path | None,
                typer.Option(
                    help="File of settings (TOML or JSON), or a result folder; options overrule it.",
                    rich_help_panel=GROUP,
                ),
            ],
            **{
                mode: Annotated[bool, typer.Option(f"--{mode}", help=text, rich_help_panel=GROUP)]
                for mode, text in APPROXIMATE.items()
            },
            **{f"setting_{name}": _option(name, lists) for name in names},
        }
        made = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=False if name in APPROXIMATE else None,
                annotation=annotation,
            )
            for name, annotation in extra.items()
        ]
        run.__signature__ = inspect.Signature([*kept, *made])  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in (*kept, *made)}
        return run

    return decorate


def is_list(name: str) -> bool:
    """Whether a setting is itself a list, whose values stand between commas."""
    return _type_of(name).startswith("tuple")


def parse_setting(name: str, text: str) -> Any:
    """The value of a setting from the text of its option; what is no number stays text, and is refused by name."""
    if is_list(name):
        return () if text == "none" else tuple(_number(part, name) for part in split_list(text))
    if "bool" in _type_of(name) and text in {"true", "false"}:
        return text == "true"
    return text if name == "prompt" else _number(text, name)


def read_settings(path: Path) -> dict[str, Any]:
    """Settings from a TOML or JSON file, from a result's result.json, or from a result folder.

    Raises:
        InputError: no such file, or none that can be read.
    """
    file = path / "result.json" if path.is_dir() else path
    try:
        text = file.read_text(encoding="utf-8-sig")
        held = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: no settings can be read ({error}); accepted: a TOML or JSON file") from error
    if isinstance(held, dict):
        held = held.get("configuration", held)
    if not isinstance(held, dict):
        raise InputError(f"{file}: holds no table of settings; accepted: what result.json calls its configuration")
    return held


def require_settings_name(path: Path) -> None:
    """Refuse a name of settings that says no format.

    Raises:
        InputError: it ends in neither .toml nor .json.
    """
    if path.suffix not in {".toml", ".json"}:
        raise InputError(f"{path}: accepted: a name that ends in .toml or .json")


def write_settings(config: Settings, path: Path) -> None:
    """Write settings as TOML, or as JSON where the name ends so; `--config` reads them.

    Raises:
        InputError: a name of another ending.
    """
    import tomli_w

    require_settings_name(path)
    held = config.to_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps(held, indent=2) + "\n" if path.suffix == ".json" else tomli_w.dumps(held), encoding="utf-8"
    )


def format_options(options: Mapping[str, Any]) -> str:
    """Settings by option name as options ready to paste, such as `--strength 5 --layer up16.cross2.output`."""
    import shlex

    shown = []
    for name, value in options.items():
        if value is None:
            continue
        plain = ",".join(map(str, value)) or "none" if isinstance(value, tuple | list) else value
        text = str(plain).lower() if isinstance(plain, bool) else str(plain)
        shown.append(f"{_flags(name)[0]} {shlex.quote(text)}")
    return " ".join(shown)


def find_layers(model: ProbeModel, pattern: str) -> list[str]:
    """Names of sites, one an attention layer, that a name or a pattern such as "up16.*" stands for.

    Raises:
        SiteError: no layer matches; the message lists near ones.
    """
    from fnmatch import fnmatchcase

    from emerdiff_probe.sites import find_site, list_sites

    if not re.search(r"[*?\[]", pattern):
        return [find_site(model, pattern).name]
    layers: dict[str, str] = {}
    for site in list_sites(model):
        if site.layer and site.part == "output" and fnmatchcase(site.name, pattern):
            layers.setdefault(site.layer, site.name)
    return list(layers.values()) or [find_site(model, pattern).name]


WorkersOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=65_536,
        help="Share samples among so many workers of Ray, here or on the cluster that RAY_ADDRESS names; results are "
        "the same to the bit, because each runs with as many threads (OMP_NUM_THREADS) as this command.",
    ),
]


def split_list(text: str) -> tuple[str, ...]:
    """The parts of a text with commas, without the spaces around them."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _option(name: str, lists: bool) -> Any:
    help_text = _help(name) + (
        " Several with ';'." if lists and is_list(name) else " Several with commas." if lists else ""
    )
    option = typer.Option(*_flags(name), help=help_text, metavar=_metavar(name), rich_help_panel=GROUP)
    return Annotated[str | None, option]


def _flags(name: str) -> tuple[str, ...]:
    return FLAGS.get(name, (f"--{name.replace('_', '-')}",))


def _metavar(name: str) -> str:
    kind = _type_of(name)
    if is_list(name):
        return "INTEGERS" if "int" in kind else "NAMES"
    for part, shown in (("bool", "true|false"), ("int", "INTEGER"), ("float", "NUMBER")):
        if part in kind:
            return f"{shown}|NAME" if "str" in kind or "Literal" in kind else shown
    return "TEXT"


def _number(text: str, name: str) -> Any:
    kind = _type_of(name)
    for part, convert in (("int", int), ("float", float)):
        if part in kind:
            try:
                return convert(text)
            except ValueError:
                continue
    return text


def _type_of(name: str) -> str:
    """The type of a setting as its field says it."""
    part, leaf = OPTIONS[name]
    kind = Settings if part is None else PARTS[part]
    return next(str(each.type) for each in fields(kind) if each.name == leaf)


def _help(name: str) -> str:
    """What the docstring of a setting's class says about it."""
    part, leaf = OPTIONS[name]
    text = inspect.cleandoc((Settings if part is None else PARTS[part]).__doc__ or "")
    for line in re.findall(
        r"^    ([\w, ]+: (?:.|\n        )+)$", text.split("Attributes:")[1].split("Raises:")[0], re.M
    ):
        named, _, told = line.partition(": ")
        if leaf in named.split(", "):
            sentence = " ".join(told.split())
            return sentence[0].upper() + sentence[1:]
    raise KeyError(f"{name} has no line in its docstring")
