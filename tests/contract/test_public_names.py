"""The public names are importable, and loaded when first used."""

import subprocess
import sys

import pytest

import doublebind
from doublebind.schema import errors


@pytest.mark.parametrize("name", doublebind.__all__)
def test_a_public_name_is_importable_and_listed(name: str) -> None:
    assert getattr(doublebind, name) is not None
    assert name in dir(doublebind)


def test_public_names_are_loaded_when_first_used() -> None:
    code = (
        "import sys, doublebind\n"
        "loaded = [m for m in sys.modules if m.startswith('doublebind.')]\n"
        "assert not loaded, loaded\n"
        "assert callable(doublebind.load_study) and 'doublebind.schema.study' in sys.modules\n"
        "assert 'doublebind.pipeline.run' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = doublebind.no_such_name


def test_every_error_is_in_the_tree_and_of_a_standard_type() -> None:
    leaves = {
        errors.ConfigError: ValueError,
        errors.PackError: ValueError,
        errors.ModelError: ValueError,
        errors.RunError: ValueError,
        errors.StoreError: OSError,
        errors.MissingExtra: ImportError,
    }
    for kind, standard in leaves.items():
        assert issubclass(kind, errors.DoublebindError)
        assert issubclass(kind, standard)
    assert set(leaves) == set(errors.DoublebindError.__subclasses__())


def test_problems_are_one_line_each() -> None:
    error = errors.ConfigError("a\n  b", "c")
    assert str(error).splitlines() == ["a b", "c"]
