"""The version of the package, for `--version`, reports and model cards."""

__version__ = "0.1.0"
