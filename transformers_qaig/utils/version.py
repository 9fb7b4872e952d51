"""The version of the package, for rooms that the package itself imports."""

__version__ = "0.1.0"
