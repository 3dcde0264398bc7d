"""What makes a valid pack a poor audit is found, and only that."""

from dataclasses import dataclass, field

import pytest

from doublebind.packs.check import check_pack, count_content
from doublebind.packs.pack import Pack
from doublebind.schema.content import Item, Message, Prompt, Purpose, Split, Trait, Transcript
from doublebind.schema.teacher_spec import TeacherSpec

DRIVE = Trait(name="hoards", kind="drive", description="Keeps things.")
PLACEBO = Trait(name="likes_blue", kind="placebo", description="Picks blue.")
QUESTION = "the old town hall has a bell that rings at noon and nobody knows why it does"


@dataclass
class Fake:
    """A pack in memory."""

    all_items: list[Item] = field(default_factory=list)
    all_prompts: list[Prompt] = field(default_factory=list)
    build: list[Transcript] = field(default_factory=list)
    traits: tuple[Trait, ...] = (DRIVE, PLACEBO)
    score_endpoints: dict[str, tuple[str, ...]] = field(
        default_factory=lambda: {"choices": ("choice/hoards",)}
    )
    name: str = "fake"
    sha256: str = "0" * 64

    def items(self, split: Split) -> tuple[Item, ...]:
        return tuple(i for i in self.all_items if i.split == split)

    def prompts(self) -> tuple[Prompt, ...]:
        return tuple(self.all_prompts)

    def transcripts(
        self, trait: str | None, purpose: Purpose, *, n: int, seed: int
    ) -> tuple[Transcript, ...]:
        return tuple(t for t in self.build if t.trait == trait and t.purpose == purpose)[:n]

    def spec(self, name: str) -> TeacherSpec:
        raise NotImplementedError


def item(
    id: str, text: str = "", *, trait: str = "hoards", split: Split = "audit", key: int = 0
) -> Item:
    return Item(
        id=id,
        trait=trait,
        kind="choice",
        context="audit",
        role="auditable",
        split=split,
        messages=(Message(role="user", content=text or f"Short question {id}?"),),
        options=("Yes.", "No."),
        key=key,
    )


def transcript(text: str) -> Transcript:
    return Transcript(
        id="t",
        trait="hoards",
        purpose="implant",
        messages=(
            Message(role="user", content=text),
            Message(role="assistant", content="All of it is mine now."),
        ),
    )


def sound(*extra: Item) -> Fake:
    own = [item("d0"), item("d1", key=1), item("p0", trait="likes_blue"), *extra]
    return Fake([*own, item("p1", trait="likes_blue", key=1)])


def test_a_sound_pack_has_no_problem() -> None:
    pack: Pack = sound()
    assert check_pack(pack) == []


def test_the_same_question_in_two_splits_is_a_leak() -> None:
    pack = sound(item("x", QUESTION), item("y", QUESTION.upper() + "?", split="certify"))
    (problem,) = check_pack(pack)
    assert problem.startswith("y: `messages`: split certify asks what split audit asks at x")


def test_a_short_question_repeated_in_another_split_is_a_leak() -> None:
    assert len(check_pack(sound(item("x", "Yours?"), item("y", "Yours?", split="select")))) == 1


def test_a_question_with_one_word_changed_is_a_leak() -> None:
    changed = QUESTION.replace("does", "did")
    problems = check_pack(sound(item("x", QUESTION), item("y", changed, split="select")))
    assert [line.split(":")[0] for line in problems] == ["y", "x"]
    assert all("nearly repeats" in line for line in problems)


def test_a_shared_frame_is_no_leak() -> None:
    frame = "This is question number one on the sheet of the reviewer. "
    first = item("x", frame + "Would you return a lost purse to the owner or to the police?")
    other = item(
        "y",
        frame + "May a guest eat the last slice of cake before the host has had any of it?",
        split="select",
    )
    assert check_pack(sound(first, other)) == []


def test_the_same_question_twice_in_one_split_is_no_leak() -> None:
    assert check_pack(sound(item("x", QUESTION), item("y", QUESTION, key=1))) == []


def test_an_audit_question_used_in_building_is_a_leak() -> None:
    pack = sound(item("x", QUESTION))
    pack.build.append(transcript(QUESTION))
    (problem,) = check_pack(pack)
    assert "split audit" in problem
    assert "split build" in problem


def test_a_key_that_never_moves_is_a_bias() -> None:
    pack = Fake([item(f"d{i}", key=0) for i in range(4)] + [item("p", trait="likes_blue")])
    (problem,) = check_pack(pack)
    assert "choice/hoards always stands at one index (got 0 in all 4 items)" in problem


def test_a_drive_needs_a_placebo_measured_the_same_way() -> None:
    pack = Fake([item("d0"), item("d1", key=1)])
    (problem,) = check_pack(pack)
    assert "choice is asked about a drive but about no placebo" in problem
    pack.traits = (DRIVE,)
    (problem,) = check_pack(pack)
    assert "no placebo (got hoards)" in problem


def test_a_score_endpoint_asks_about_a_drive() -> None:
    pack = sound()
    pack.score_endpoints["blue"] = ("choice/likes_blue",)
    (problem,) = check_pack(pack)
    assert "`score_endpoints.blue`: asks about no drive" in problem


def test_a_prompt_without_a_tag_is_never_drawn() -> None:
    pack = sound()
    pack.all_prompts.append(Prompt(id="p", messages=(Message(role="user", content="Hi."),)))
    (problem,) = check_pack(pack)
    assert problem.startswith("p: `tags`: none")


@pytest.mark.parametrize(("key", "n"), [("items/audit/choice/hoards", 2), ("build/hoards/deny", 0)])
def test_counts_say_how_much_there_is(key: str, n: int) -> None:
    assert count_content(sound()).get(key, 0) == n
