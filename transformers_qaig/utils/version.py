"""The version of the package, for rooms that the package itself imports."""

__version__ = "0.2.0.dev0"
