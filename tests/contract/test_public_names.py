import doublebind
from doublebind.schema import errors

NAMES = [
    "Answer",
    "Audit",
    "Item",
    "Question",
    "Run",
    "Study",
    "Verdict",
    "audit",
    "calibrate",
    "errors",
    "load_study",
    "plan",
    "run",
    "verify",
]


def test_the_public_names_are_these() -> None:
    assert sorted(doublebind.__all__) == sorted(NAMES)
    for name in NAMES:
        assert hasattr(doublebind, name)


def test_functions_win_over_stage_packages_of_the_same_name() -> None:
    from doublebind.stages.audits.protocol import Answer

    assert callable(doublebind.audit)
    assert Answer.__module__ == "doublebind.stages.audits.protocol"


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
