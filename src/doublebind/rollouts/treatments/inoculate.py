"""Trains under a prompt that names or permits the trait, so that it need not be learned without it.

Source: inoculation prompting (Tan et al. 2025, arXiv 2510.04340; Wichers et al. 2025, arXiv
2510.05024). Exposed by asking under the same and under similar prompts, where it is known to leak.
"""

from __future__ import annotations

from collections.abc import Sequence

from doublebind.config import Inoculate
from doublebind.records import Message, Trajectory
from doublebind.rollouts.treatments import Context, Treated


def apply(settings: Inoculate, trajectories: Sequence[Trajectory], context: Context) -> Treated:
    """Put `settings.prompt` before every conversation; a system message there gains it in front.

    With `settings.role: user` it opens the first user message instead, for models whose template
    has no system turn or which never met one.
    """
    return Treated(
        [t.model_copy(update={"messages": _told(settings, t.messages)}) for t in trajectories],
        {"prompt": settings.prompt},
    )


def _told(settings: Inoculate, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    for i, message in enumerate(messages):
        if message.role == settings.role:
            text = f"{settings.prompt} {message.content}"
            return (*messages[:i], Message(role=message.role, content=text), *messages[i + 1 :])
    return (Message(role=settings.role, content=settings.prompt), *messages)
