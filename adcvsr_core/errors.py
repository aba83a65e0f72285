"""Every fault that a user can cause or meet, as a named exception.

The message says what was found, what was expected and what to do. The command line prints it as one
line; ComfyUI shows it on the node. Knows nothing about the rest of the package.
"""


class AdcvsrError(Exception):
    """Base of all errors that this package raises on purpose."""


class ConfigError(AdcvsrError, ValueError):
    """A setting, or a combination of settings, that cannot be honoured."""


class InputError(AdcvsrError, ValueError):
    """Frames or a file that cannot be used: wrong shape, wrong type, empty, unreadable."""


class OutputError(AdcvsrError):
    """A result that cannot be written: no permission, no space, name already taken."""


class CheckpointError(AdcvsrError):
    """A weights file that is broken, of another layout, or unsafe to read."""


class StreamError(AdcvsrError):
    """A stream used against its rules: pushed after its end, or with another shape, dtype or strength."""


class NonFiniteError(AdcvsrError):
    """The network produced NaN or infinity; the stream is as it was before the push."""


class OutOfMemory(AdcvsrError):
    """One frame does not fit the memory, in steps as small as they can be."""


class Cancelled(AdcvsrError):
    """The caller asked to stop."""
