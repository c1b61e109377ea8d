"""What the tests of other formats of weights share."""

from tests.export.sources.conftest import convert_in_this_process

__all__ = ["convert_in_this_process"]
