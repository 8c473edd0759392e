"""Typed errors. Each message says what was wrong, what is allowed, and what to do.

The command line prints the message of any `QwenchError` as one line and exits with code 2.
"""


class QwenchError(Exception):
    """Base of every error that a user can cause or needs to know of."""


class ConfigError(QwenchError, ValueError):
    """An option has an impossible value, is unknown, or contradicts another one."""


class CheckpointError(QwenchError):
    """The checkpoint is not what its config says: missing, mis-shaped, truncated, corrupt or unsupported."""


class ArtifactError(QwenchError):
    """The compiled folder can't be used: wrong version, missing or changed file, half written."""


class TargetError(QwenchError):
    """The requested target doesn't exist or this machine can't run it."""


class HubError(QwenchError):
    """A model couldn't be fetched from the hub."""


class CapacityError(QwenchError):
    """More memory or disk is needed than there is."""


class RequestError(QwenchError, ValueError):
    """A generation request is invalid: too long, empty, or with impossible sampling parameters."""


class GrammarError(RequestError):
    """A grammar, a JSON schema or a regular expression is invalid, unsupported or too complex to follow."""


class NumericalError(QwenchError):
    """The model produced NaN or infinite logits; the request is failed rather than answered with noise."""


class PrefixError(QwenchError):
    """A saved prefix can't be used: missing, damaged, or of another model, cache or version."""


class DeadlineError(QwenchError, TimeoutError):
    """A request or a call took longer than the `timeout` it was given; what it had computed is lost."""
