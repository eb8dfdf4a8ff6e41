"""Typed errors: each message says what was wrong, where, what was given and what is accepted."""


class ProbeError(Exception):
    """Base of every error that this package raises on purpose."""


class InputError(ProbeError, ValueError):
    """An image, mask, folder or number that cannot be used, found before any model runs."""


class LabelError(InputError):
    """Labels that mean nothing as their data set is described: those of its other files may mean something else."""


class ModelError(ProbeError):
    """A model that cannot be loaded, is unsafe to load (pickled weights) or is damaged (NaN)."""


class SiteError(ProbeError, LookupError):
    """A site that matches nothing, or several; the message lists the near ones."""


class TimestepError(ProbeError, LookupError):
    """A timestep that is not on the grid of the scheduler or is never reached by the run."""


class InterventionError(ProbeError):
    """An intervention that is ill-formed, that the denoiser cannot take, or that never took effect."""


class ProbeWarning(UserWarning):
    """Something that a model lacks or that is not known of it was replaced; the message says by what."""
