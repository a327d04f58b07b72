"""What the person at the keyboard can put right: shown as one message, without a traceback."""


class ExperimentError(Exception):
    """Base of the errors that `python -m experiments` reports in one message, with exit code 2."""


class ConfigError(ExperimentError):
    """The configuration file or a command-line override does not say something that can be run."""


class DataError(ExperimentError):
    """A data set is missing, incomplete, or not in the format its file name promises."""


class NotTunedError(ConfigError):
    """The baselines of a comparison have not been tuned, or not for the settings it has now."""


class RunError(ExperimentError):
    """A run folder cannot be used as asked: nothing recorded, or recorded under other settings."""
