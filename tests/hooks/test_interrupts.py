"""An interrupt may come at any line: no hook of ours stays, no processor, and the denoiser gives the same bits."""

import sys
from collections.abc import Callable
from functools import cache

import pytest
import tiny
import torch

from emerdiff_probe.hooks.attach import Capture, Edit, attached, keep_clean
from emerdiff_probe.interventions import InjectAttention, Modulate
from emerdiff_probe.models.loading import load_model
from emerdiff_probe.reading.features import capture
from emerdiff_probe.sites import find_site
from emerdiff_probe.trajectories.denoise import denoise, predict
from emerdiff_probe.trajectories.inversion import invert

WATCHED = ("/emerdiff_probe/", "/contextlib.py", "/torch/utils/hooks.py")
"""Files whose lines are places; of torch's modules those functions that register."""


PLACES = 12
"""How many of them a test tries: as many lines of the program as that, each where it is first or last run."""


@cache
def watched(code):
    """Whether a function's lines are places; called at every call of any function."""
    registers = code.co_filename.endswith("/torch/nn/modules/module.py") and code.co_name.startswith("register_")
    return registers or any(part in code.co_filename for part in WATCHED)


class Interrupter:
    """Counts the lines that a call runs in the watched files, and raises a KeyboardInterrupt at one of them."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.lines = at, 0
        self.first: dict[tuple[str, int], int] = {}
        self.last: dict[tuple[str, int], int] = {}

    @property
    def places(self) -> list[int]:
        """First and last run of every line of the program, in order."""
        return sorted({*self.first.values(), *self.last.values()})

    def __call__(self, frame, event, _):
        return self.line if watched(frame.f_code) else None

    def line(self, frame, event, _):
        if event == "line":
            self.lines += 1
            place = frame.f_code.co_filename, frame.f_lineno
            self.first.setdefault(place, self.lines)
            self.last[place] = self.lines
            if self.lines == self.at:
                raise KeyboardInterrupt
        return self.line

    def run(self, call: Callable[[], object]) -> None:
        before = sys.gettrace()
        sys.settrace(self)
        try:
            call()
        finally:
            sys.settrace(before)


@pytest.fixture(scope="module")
def own():
    """A model of this file's own: another test must not meet what an interrupt left."""
    return load_model(tiny.pocket(), device="cpu")


@pytest.fixture(scope="module")
def path(own):
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    return invert(own, latents, start=101, steps=10)


@pytest.fixture(scope="module")
def calls(own, path):
    site, query = find_site(own, "up8.cross2.output"), find_site(own, "up8.cross0.query")
    variant = [Modulate(site, torch.ones(8, 8), 3.0, (101,)), InjectAttention()]
    return {
        "denoise": lambda: denoise(own, path, [variant], steps=1),
        "shared levels": lambda: denoise(own, path, [variant], shared_levels=1),
        "capture": lambda: capture(own, path, [query], [1]),
    }


@pytest.mark.parametrize("name", ["denoise", "shared levels", "capture"])
def test_an_interrupt_at_any_line_leaves_nothing_behind(own, path, calls, name):
    call, counting = calls[name], Interrupter()
    call()  # what is found once and kept
    counting.run(call)
    processors = dict(own.denoiser.attn_processors)
    condition = own.embed("", 64, 64)
    expected = predict(own, path.at(101), 101, condition)
    places = counting.places
    for at in places[:: max(1, len(places) // PLACES)]:
        with pytest.raises(KeyboardInterrupt) as caught:
            Interrupter(at).run(call)
        assert caught.traceback  # held, as a notebook holds the last one: nothing waits for it to be freed
        assert tiny.hooks_of(own.denoiser) == [], f"line {at} of {counting.lines}"
        now = own.denoiser.attn_processors
        assert all(now[key] is processor for key, processor in processors.items()), f"line {at} of {counting.lines}"
    assert torch.equal(predict(own, path.at(101), 101, condition), expected)


def test_what_two_interrupts_left_is_inert_and_taken_out_by_the_next_context(own, path):
    site = find_site(own, "up8.cross2.output")
    condition = own.embed("", 64, 64)
    expected = predict(own, path.at(101), 101, condition)
    spoil = Edit(site, None, None, lambda activation, rows, grid: 0 * activation[rows], "spoil")
    context = attached(own, edits=[spoil])
    context.__enter__()
    current = next(hook.owner for hook in tiny.hooks_of(own.denoiser) if hasattr(hook, "owner"))
    assert not torch.equal(predict(own, path.at(101), 101, condition), expected)
    current.live = False  # as far as the first interrupt let it come
    assert torch.equal(predict(own, path.at(101), 101, condition), expected)
    assert tiny.hooks_of(own.denoiser)
    with attached(own, captures=[Capture(site)]):
        assert all(hook.owner is not current for hook in tiny.hooks_of(own.denoiser) if hasattr(hook, "owner"))
        predict(own, path.at(101), 101, condition)
    assert tiny.hooks_of(own.denoiser) == []


def test_hooks_of_others_and_of_contexts_around_stay(own, path):
    site, condition = find_site(own, "up8.cross2.output"), own.embed("", 64, 64)
    seen = []
    theirs = own.denoiser.conv_in.register_forward_hook(lambda *_: seen.append(1))
    try:
        with attached(own, captures=[Capture(site)]) as outer:
            with pytest.raises(KeyboardInterrupt), keep_clean(own), attached(own, captures=[Capture(site)]):
                raise KeyboardInterrupt
            predict(own, path.at(101), 101, condition)
        assert len(outer[site, 101]) == len(seen) == 1
    finally:
        theirs.remove()
    assert tiny.hooks_of(own.denoiser) == []
