"""A package that isn't there is named with what brings it; a fault of our own isn't taken for one."""

import pytest

from isobasin.errors import DependencyError, needing


def test_a_missing_package_is_said_in_a_line():
    with pytest.raises(DependencyError, match="need it: pip install that"), needing("need it", "pip install that"):
        import no_such_package  # noqa: F401  # pyright: ignore[reportMissingImports]


def test_what_is_wrong_with_our_own_modules_is_no_missing_package():
    with pytest.raises(ImportError, match="no_such_name"), needing("figures need it", "pip install that"):
        from isobasin.errors import no_such_name  # noqa: F401  # pyright: ignore[reportAttributeAccessIssue]
