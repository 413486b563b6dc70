"""Danqing (丹青): a self-hosted image-generation service."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("danqing")
except (
    PackageNotFoundError
):  # a source tree that is not installed: a GPU machine with domain and engine alone
    __version__ = "0+source"
