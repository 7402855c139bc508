"""What the user can mend. A script prints the message alone and leaves with exit status 2."""


class DetectorError(Exception):
    """Wrong input; the message names the file, key or id and says what to do."""


class ConfigError(DetectorError):
    """A configuration file, section or key."""


class DataError(DetectorError):
    """An image, an annotation or a split of a data set."""


class CheckpointError(DetectorError):
    """A file of weights."""
