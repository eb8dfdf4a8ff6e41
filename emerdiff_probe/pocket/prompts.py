"""Words for the classes of the world: the phrases by which captions would speak of each, for naming by text."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from emerdiff_probe.pocket.things import KINDS, OBJECT_NAMES, PART_NAMES
from emerdiff_probe.pocket.world import PART_WORDS

_BACKDROPS = {"cloud": ("clouds",), "mountain": ("mountains",), "hill": ("hills",), "sun or moon": ("sun", "moon")}
_OWNERS = {
    "house window": ("house",),
    "car window": ("car", "bus"),
    "animal head": ("animal",),
    "head": ("person",),
    "animal legs": ("animal",),
    "legs": ("person",),
}
"""Whose part it is, where captions have one word for parts of different things."""


def _nouns(field: str) -> dict[str, tuple[str, ...]]:
    """Nouns in both numbers of the kinds by a field: the part that captions colour, or the object class."""
    found: dict[str, dict[str, None]] = {}
    for kind in KINDS:
        found.setdefault(getattr(kind, field), {}).update({kind.noun: None, kind.plural: None})
    return {name: tuple(nouns) for name, nouns in found.items()}


def _part_phrases(part: str) -> tuple[str, ...]:
    """Captions call the part that gives a thing its colour by the thing itself ("a grey house": its wall)."""
    if part in _BACKDROPS:
        return _BACKDROPS[part]
    if part in (whole := _nouns("colour")):
        return whole[part]
    if part not in PART_WORDS:
        return (part,)
    word = PART_WORDS[part]
    owners = [kind.noun for kind in KINDS if kind.thing in _OWNERS.get(part, ())]
    return tuple(f"{owner} with {word}" for owner in owners) or (word,)


PART_PHRASES: Mapping[str, tuple[str, ...]] = MappingProxyType({part: _part_phrases(part) for part in PART_NAMES})
"""Phrases for every part class, in the order of `PART_NAMES`. No caption names road markings, snowcaps, sun or moon."""

OBJECT_PHRASES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {name: _BACKDROPS.get(name) or _nouns("thing").get(name, (name,)) for name in OBJECT_NAMES}
)
"""Phrases for every object class, in the order of `OBJECT_NAMES`."""
