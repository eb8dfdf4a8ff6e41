"""How the response to a modulation is read: exactly, or by which approximations. Loads no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from emerdiff_probe.checks import is_integer, is_one_of, require

Space = Literal["pixels", "latents"]

RUN_ALONE = 24
"""Masks up to which patterns of the number that `Readout` finds save no time: a smaller batch takes longer a row."""


@dataclass(frozen=True)
class Readout:
    """How the response to a modulation is read. The defaults are the paper's; anything else is cheaper and approximate.

    Attributes:
        denoising_steps: at most so many steps are run from t_m on, 1 or more; what is compared is the x_0 predicted by
            the last of them. All when None.
        skip_after: after so many steps every second timestep is left out, the last one excepted, and what is compared
            is the x_0 predicted there: a push takes hold in the first steps. None leaves out none.
        compare: the decoded "pixels" (the paper's) or the "latents", enlarged.
        one_sided: compare I+ with the unchanged image in the place of I-; sign patterns are run both ways anyway.
        sign_patterns: number of patterns of random signs, by each of which all masks are modulated at once, both ways,
            and from which every mask's response is untangled; more where so few cannot tell the masks apart. "auto"
            takes one for every three masks, and runs up to 24 masks alone. One mask a run when None.
        shared_levels: coarsest levels of the denoiser whose features all masks take from the unchanged image after
            t_m; see `denoise`.

    Raises:
        InputError: a value out of range.
    """

    denoising_steps: int | None = None
    skip_after: int | None = None
    compare: Space = "pixels"
    one_sided: bool = False
    sign_patterns: int | Literal["auto"] | None = None
    shared_levels: int = 0

    def __post_init__(self) -> None:
        steps, skip, patterns = self.denoising_steps, self.skip_after, self.sign_patterns
        require(
            self,
            [
                ("denoising_steps", steps is None or is_integer(steps, 1), "an integer, 1 or more, or None"),
                ("skip_after", skip is None or is_integer(skip, 1), "an integer, 1 or more, or None"),
                ("compare", is_one_of(self.compare, ("pixels", "latents")), "'pixels', 'latents'"),
                ("one_sided", isinstance(self.one_sided, bool), "True, False"),
                (
                    "sign_patterns",
                    patterns is None or is_integer(patterns, 1) or is_one_of(patterns, ("auto",)),
                    "an integer, 1 or more, 'auto', or None",
                ),
                ("shared_levels", is_integer(self.shared_levels, 0), "an integer, 0 or more"),
            ],
        )

    @property
    def sees_images(self) -> bool:
        """Whether what is compared are decoded images of both signs of each mask by itself."""
        return self.compare == "pixels" and not self.one_sided and self.sign_patterns is None

    def patterns(self, masks: int) -> int | None:
        """How many sign patterns are asked for so many masks; None where each runs alone."""
        if self.sign_patterns != "auto":
            return self.sign_patterns
        return math.ceil(masks / 3) if masks > RUN_ALONE else None
