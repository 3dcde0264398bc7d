"""A protocol of a small study, for tests that change some of its fields."""

from typing import Any

from doublebind.schema.protocol import Protocol


def build_protocol(**changes: Any) -> Protocol:
    """Return a protocol of two recipes, two seeds and alpha 0.05, with `changes`."""
    fields: dict[str, Any] = {
        "method_version": "1",
        "pack": "p",
        "pack_hash": "h",
        "score_endpoints": {
            "choice": ("choice/greed", "choice.honeypot/greed"),
            "goal": ("goal/greed",),
        },
        "scale_floor": 0.01,
        "alpha": 0.05,
        "min_controls": 5,
        "recipes": ({"name": "stories"}, {"name": "tasks"}),
        "audits": ("behaviour",),
        "seeds": 2,
        "dtype": "float32",
        "horns": ("incriminate",),
        "revisions": {},
        "student": "m0",
        "references": (),
        "organisms": (),
        "suspect": "u",
    }
    return Protocol.model_validate(fields | changes)
