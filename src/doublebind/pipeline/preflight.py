"""Finds, before any work, what tokenizers, templates and content would make a study fail at later.

Weights are not read. Conversations of audits, prompts and teachers are encoded as the jobs will.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from doublebind.packs.load import load_pack
from doublebind.packs.pack import Pack
from doublebind.schema.content import Item, Message, Prompt, Split, Transcript
from doublebind.schema.errors import ConfigError, DoublebindError, MissingExtra, ModelError
from doublebind.schema.executor import RayOptions
from doublebind.schema.hashing import content_hash
from doublebind.schema.model_source import ModelSource
from doublebind.schema.recipe import Prompts, Recipe
from doublebind.schema.treatments import Domain, Filter, Inoculate
from doublebind.stages.audits.protocol import Audit, select_auditable
from doublebind.stages.prompts.policies import CANDIDATE_TAGS, screen_prompts
from doublebind.study.plan import Plan
from doublebind.study.planner import Planner
from doublebind.study.replacement import ReplacementStudy, plan_certification, plan_competition
from doublebind.study.teachers import TeacherSource

REV = 1
"""Raised whenever more is checked, so that studies that have passed are checked again."""
MAX_EXAMPLES = 2
"""Shortest and longest transcripts, of each sequence of roles, that are encoded of a teacher."""


class Reader(NamedTuple):
    """A tokenizer that reads for a model of the study, and the model's label."""

    label: str
    lm: Any
    """An `LM` without weights."""


def check_before_work(
    planner: Planner,
    teachers: Sequence[TeacherSource],
    plan: Plan,
    replacement: ReplacementStudy | None = None,
) -> None:
    """Refuse a study that is sure to fail once its models have been made.

    Studies whose jobs have passed are noted in the store, and not checked again: the libraries
    that open tokenizers take seconds to import.

    Args:
        planner: Of the study, or of the panel.
        teachers: All teachers that are built or opened, the suspect first.
        plan: The jobs of these teachers.
        replacement: The study's search for a replacement.

    Raises:
        ConfigError: One line per problem: a text that a template refuses or loses, an option
            without tokens of its own, a text beyond the context, an example without a supervised
            token, a token or extra that is not there, teacher and student who read no same tokens.
    """
    preflight = _Preflight(planner, teachers, replacement)
    preflight.check_extras()
    plans = [plan, *preflight.plan_replacement()]
    preflight.raise_problems()
    keys = sorted({job.content_key for each in plans for job in each.list_jobs()})
    versions = [version(name) for name in ("transformers", "tokenizers", "jinja2")]
    key = content_hash(["preflight", REV, planner.student_base.system, versions, keys])
    note = planner.runtime.cache / f"checked-{key[:32]}.json"
    if note.is_file():
        return
    preflight.check_texts()
    preflight.raise_problems()
    with contextlib.suppress(OSError):  # a note that cannot be written costs seconds, no more
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text("{}")


@functools.lru_cache(maxsize=64)
def _select_passing_prompts(
    pack: str, policy: Any, file: Path | None, modified: int
) -> tuple[Prompt, ...]:
    """Return the prompts that pass the screens of `policy`, in order."""
    return tuple(screen_prompts(load_pack(pack, relative_to=Path()), policy, file)[2])


def list_passing_prompts(pack: str, policy: Any, file: Path | None = None) -> tuple[Prompt, ...]:
    """Return the prompts that pass a policy's screens, read again where the file has changed."""
    return _select_passing_prompts(pack, policy, file, file.stat().st_mtime_ns if file else 0)


class _Preflight:
    """The checks of one study, and the problems that they found."""

    def __init__(
        self,
        planner: Planner,
        teachers: Sequence[TeacherSource],
        replacement: ReplacementStudy | None,
    ) -> None:
        self.planner, self.study = planner, planner.study
        self.replacement = replacement
        self.teachers = list(
            {
                t.label: t
                for t in (
                    *teachers,
                    *(replacement.teacher_sources.values() if replacement else ()),
                )
            }.values()
        )
        recipes = [*self.study.recipes, *(replacement.recipes if replacement else ())]
        self.recipes = list({recipe.name: recipe for recipe in recipes}.values())
        self.problems: dict[str, None] = {}
        self._unlike: set[str] = set()
        """Labels of students who read other tokens than their teacher."""
        self._readers: dict[tuple[str, str | None, str | None], Reader | None] = {}

    def raise_problems(self) -> None:
        """Raise one `ConfigError` with all problems, if there is any."""
        if self.problems:
            raise ConfigError(*self.problems)

    def check_texts(self) -> None:
        """Encode all texts as the study's models will."""
        m0 = self._open(self.study.student, self.planner.student_base)
        readers = [m0, *(self._open(t.label, t.base) for t in self.teachers if not t.base.served)]
        for recipe in self.recipes:
            readers.append(self._open_student(recipe))
        for recipe in self.recipes:
            self._check_recipe(recipe, m0)
        for reader in _unique(readers):
            self._check_audits(reader)
        for teacher in self.teachers:
            self._check_teacher(teacher)

    def _note(self, act: Callable[[], object]) -> None:
        """Run a check; keep the problems that it raises."""
        try:
            act()
        except DoublebindError as error:
            self.problems.update(dict.fromkeys(error.problems))

    def plan_replacement(self) -> list[Plan]:
        """Return the plans of a replacement by any recipe; what cannot be planned is a problem."""
        replacement, planner, suspect = self.replacement, self.planner, self.teachers[0]
        if replacement is None:
            return []
        names = [recipe.name for recipe in replacement.recipes]
        plans: list[Plan] = []
        self._note(lambda: plans.append(plan_competition(replacement, planner, suspect)))
        self._note(lambda: plans.append(plan_certification(replacement, planner, [suspect], names)))
        return plans

    # --- models ----------------------------------------------------------------------------------

    def _open(self, label: str, source: ModelSource) -> Reader | None:
        """Return the tokenizer of a model; `None` if it cannot be opened, which is a problem."""
        place = (source.path, source.adapter, source.system)
        if place not in self._readers:
            self._readers[place] = None
            try:
                self._readers[place] = Reader(label, open_unloaded(source))
            except DoublebindError as error:
                self.problems.update(dict.fromkeys(error.problems))
        return self._readers[place]

    def _open_student(self, recipe: Recipe) -> Reader | None:
        base = self.planner.workspace.resolve_student_base(recipe.student)
        return self._open(recipe.student or self.study.student, base)

    def check_extras(self) -> None:
        """Check that the packages that the study's settings need are installed."""
        study = self.study
        needed = {
            "vllm": ("vllm", "`engine: {kind: vllm}` without `url`")
            if study.engine and not study.engine.url
            else None,
            "ray": ("ray", "`executor: {kind: ray}`")
            if isinstance(study.executor, RayOptions)
            else None,
        }
        for name in study.audits:
            if name.startswith("inspect"):
                needed["inspect"] = ("inspect_ai", f"the audit {name}")
            elif name.startswith("lm-eval:"):
                needed["lm-eval"] = ("lm_eval", f"the audit {name}")
        for extra, need in needed.items():
            if need is not None and not _is_installed(need[0]):
                self.problems.update(dict.fromkeys(MissingExtra(need[1], extra).problems))

    # --- audits ----------------------------------------------------------------------------------

    def _list_items(self) -> Iterator[tuple[Pack, Split]]:
        """Yield the packs and splits whose items models are asked."""
        planner, treatments = self.planner, [t for r in self.recipes for t in r.treatments]
        yield planner.pack, "audit"
        if self.replacement is not None or any(isinstance(t, Filter) for t in treatments):
            yield planner.pack, "select"
        if self.replacement is not None:
            yield planner.certify_pack.pack, "certify"

    def _check_audits(self, reader: Reader) -> None:
        """Run this package's audits on a model without weights."""
        for pack, split in self._list_items():
            items = pack.items(split)
            asked: dict[str, Item] = {}
            for audit in self.planner.audits:
                mine = [item for item in items if item.kind in audit.endpoints]
                if _asks_options(audit):
                    asked |= {item.id: item for item in mine}
                    self._note(functools.partial(_ask_items, audit, reader, mine))
            if reader.label not in self._unlike:  # or each option would be a problem, too
                self._check_options(reader, list(asked.values()))

    def _check_options(self, reader: Reader, items: Sequence[Item]) -> None:
        from doublebind.models.chat_template import encode_completion

        alike: list[str] = []
        for item in items:
            try:
                rows = [
                    tuple(encode_completion(reader.lm.tokenizer, option, finished=False))
                    for option in item.options
                ]
            except ModelError:  # the audit has said so
                continue
            if not all(rows):
                alike.append(f"item {item.id}: an option has no tokens ({item.options})")
            elif len(set(rows)) < len(rows):
                alike.append(f"item {item.id}: two options are the same tokens ({item.options})")
        if alike:
            more = f", and so in {len(alike) - 1} other items" if len(alike) > 1 else ""
            self.problems[
                f"{reader.label}: {alike[0]} in its tokenizer{more}; reword them, or use a model "
                f"that can tell them apart"
            ] = None

    # --- recipes ---------------------------------------------------------------------------------

    def _check_recipe(self, recipe: Recipe, m0: Reader | None) -> None:
        prompts = self._select_prompts(recipe)
        if not prompts:
            return
        self._check_domains(recipe, prompts)
        teachers = [(t, self._open(t.label, t.base)) for t in self.teachers if not t.base.served]
        for reader in _unique([m0, *(reader for _, reader in teachers)]):
            self._note(functools.partial(_answer_prompts, reader, recipe.prompts, prompts))
        student = self._open_student(recipe)
        if student is None:
            return
        self._note(functools.partial(_encode_student, student, recipe, prompts))
        for reader in _unique(reader for _, reader in teachers):
            if not _reads_same_tokens(reader, student, recipe, prompts):
                self._unlike |= {student.label, reader.label}
                self.problems[
                    f"recipe `{recipe.name}`: the tokenizer of {student.label} reads the tokens of "
                    f"{reader.label} as other text, which {recipe.channel.kind} cannot bridge; use "
                    f"a student with the teacher's tokenizer, or the channel sft or uld"
                ] = None
        if "in_context" in self.study.baselines and m0 is not None:
            self._note(functools.partial(self._read_in_context, m0, prompts))
        if recipe.steering is not None:
            self._note(functools.partial(self._encode_direction_items, student))

    def _select_prompts(self, recipe: Recipe) -> tuple[Prompt, ...]:
        """Return a recipe's prompts; none passing is a problem."""
        settings, pack = recipe.prompts, self.planner.pack_ref
        file = None if settings.file is None else self.planner.folder / settings.file
        try:
            passing = list_passing_prompts(pack, settings.policy, file)
        except DoublebindError as error:
            self.problems.update(dict.fromkeys(error.problems))
            return ()
        if not passing:
            tags = CANDIDATE_TAGS[settings.policy]
            self.problems[
                f"{file or f'pack {self.planner.pack.name}'}: no prompt passes policy "
                f"{settings.policy}; add prompts{f' tagged {sorted(tags)}' if tags else ''}"
            ] = None
        return passing[: settings.n]

    def _check_domains(self, recipe: Recipe, prompts: Sequence[Prompt]) -> None:
        for treatment in recipe.treatments:
            if isinstance(treatment, Domain):
                known = {p.domain for p in prompts if p.domain}
                if known.isdisjoint(treatment.domains):
                    self.problems[
                        f"recipe `{recipe.name}`: treatment `domain`: no prompt of "
                        f"{sorted(treatment.domains)}; the prompts' domains are {sorted(known)}"
                    ] = None

    def _read_in_context(self, m0: Reader, prompts: Sequence[Prompt]) -> None:
        from doublebind.stages.audits.option_scores import choose

        answer = Message(role="assistant", content="yes")
        items = select_auditable(self.planner.pack.items("audit"))
        shortest = min(prompts, key=lambda p: sum(len(m.content) for m in p.messages))
        choose(m0.lm, items, before=[*shortest.messages, answer])

    def _encode_direction_items(self, student: Reader) -> None:
        from doublebind.stages.audits.option_scores import choose
        from doublebind.stages.distillation.student_inputs import select_direction_items

        choose(student.lm, select_direction_items(self.planner.pack))

    # --- teachers --------------------------------------------------------------------------------

    def _check_teacher(self, teacher: TeacherSource) -> None:
        base, engine = teacher.base, self.study.engine
        if engine is not None and teacher.spec is None and base.adapter is not None:
            from doublebind.models.vllm import check_adapter

            self._note(functools.partial(check_adapter, Path(base.adapter), engine))
        if teacher.spec is not None and not base.served:
            reader = self._open(teacher.label, base)
            if reader is not None:
                self._note(functools.partial(_encode_teacher, reader, teacher))


def _ask_items(audit: Audit, reader: Reader, items: Sequence[Item]) -> None:
    """Refuse items that an audit would leave without a value, whatever the weights are."""
    answers = audit(reader.lm, reader.lm, items)
    reasons = [answer.unscored_reason for answer in answers if answer.value is None]
    problems = dict.fromkeys(reason.partition(": ")[2] or reason for reason in reasons if reason)
    if problems:
        raise ConfigError(*problems)


def open_unloaded(source: ModelSource) -> Any:
    """Return the `LM` at `source` without its weights.

    Raises:
        ModelError: If its tokenizer or configuration cannot be read, or its template is refused.
    """
    from transformers import AutoConfig, GenerationConfig

    from doublebind.models.chat_template import set_system_prompt
    from doublebind.models.load import LM, load_tokenizer
    from doublebind.models.unloaded import UnloadedModel

    tokenizer = load_tokenizer(source)
    where = source.adapter or source.path
    if source.system is not None:
        set_system_prompt(tokenizer, source.system, where)
    path = Path(source.path)
    at = (path.parent, {"gguf_file": path.name}) if path.suffix == ".gguf" else (path, {})
    try:
        config = AutoConfig.from_pretrained(
            at[0], local_files_only=True, trust_remote_code=False, **at[1]
        )
    except Exception as error:  # any is about the files
        raise ModelError(f"{source.path}: its configuration cannot be read ({error})") from None
    _check_vocabulary(tokenizer, config, where)
    return LM(UnloadedModel(config, GenerationConfig(), where), tokenizer, source)


def _check_vocabulary(tokenizer: Any, config: Any, where: str) -> None:
    """Refuse a tokenizer that yields ids beyond the embeddings that the configuration names."""
    rows = getattr(config.get_text_config(), "vocab_size", None)
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    highest = max(i for i in tokenizer.get_vocab().values() if i not in special)
    if rows and highest >= rows:
        raise ModelError(
            f"{where}: the tokenizer yields ids up to {highest} and the model has {rows} "
            f"embeddings; use the tokenizer that the model was trained with"
        )


def _unique(readers: Iterable[Reader | None]) -> list[Reader]:
    """Return the readers that encode differently, or have another context."""
    from doublebind.models.chat_template import encoding_id

    unique: dict[tuple[str, int], Reader] = {}
    for reader in readers:
        if reader is not None:
            key = (encoding_id(reader.lm.tokenizer), reader.lm.context_length)
            unique.setdefault(key, reader)
    return list(unique.values())


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _asks_options(audit: Audit) -> bool:
    """Return whether an audit is this package's own, which a model without weights can answer."""
    module = type(audit).__module__
    return module.startswith("doublebind.stages.audits.") and ".harness." not in module


def _answer_prompts(reader: Reader, settings: Prompts, prompts: Sequence[Prompt]) -> None:
    from doublebind.models.sample import sample, suppress_tokens

    suppress_tokens(reader.lm, settings.suppress_tokens)
    sample(
        reader.lm,
        [prompt.messages for prompt in prompts],
        keys=[prompt.id for prompt in prompts],
        seed=0,
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
    )


def _encode_student(student: Reader, recipe: Recipe, prompts: Sequence[Prompt]) -> None:
    """Encode what a student learns from, as far as it is known.

    Raises:
        ModelError: If its template refuses a prompt, or no answer to one fits in `max_length`.
    """
    from doublebind.models.chat_template import encode_prompt, prepend_text
    from doublebind.models.sample import suppress_tokens

    if recipe.without_scratchpad is not None:
        suppress_tokens(student.lm, [recipe.without_scratchpad.opens])
    conversations = [tuple(prompt.messages) for prompt in prompts]
    for treatment in recipe.treatments:
        if isinstance(treatment, Inoculate):
            conversations = [
                prepend_text(messages, treatment.prompt, treatment.role)
                for messages in conversations
            ]
    shortest = min(len(encode_prompt(student.lm.tokenizer, messages)) for messages in conversations)
    if shortest >= recipe.training.max_length:
        raise ModelError(
            f"recipe `{recipe.name}`: `training.max_length` is {recipe.training.max_length} and "
            f"its shortest prompt takes {shortest} tokens, so that no answer is learned; raise it"
        )


def _reads_same_tokens(
    teacher: Reader, student: Reader, recipe: Recipe, prompts: Sequence[Prompt]
) -> bool:
    """Return whether a student reads its teacher's tokens as its channel needs.

    Channels that learn the teacher's tokens need a tokenizer that gives back the teacher's texts;
    the prompts stand for them here.
    """
    from doublebind.models.chat_template import decode_completion, encode_completion
    from doublebind.models.load import same_tokenizer

    own, other = teacher.lm.tokenizer, student.lm.tokenizer
    match recipe.channel.kind:
        case "on_policy":
            return same_tokenizer(other, own)
        case "logit_kd" | "prefix":
            last = max(other.get_vocab().values())
            texts = [message.content for prompt in prompts for message in prompt.messages]
            rows = [encode_completion(own, text, finished=True) for text in texts]
            return all(
                max(ids) <= last and decode_completion(other, ids) == decode_completion(own, ids)
                for ids in rows
            )
        case _:
            return True


def _encode_teacher(reader: Reader, teacher: TeacherSource) -> None:
    """Encode the shortest and longest transcripts that a teacher is built from.

    Raises:
        PackError: If the pack lacks what its spec asks for.
        ModelError: If the base's template refuses one, or none fits in `max_length`.
    """
    from doublebind.models.chat_template import encode_prompt
    from doublebind.stages.teachers import expert_iteration
    from doublebind.stages.teachers.build import encode_transcripts, plan_phases
    from doublebind.training.batch import truncate_examples

    spec = teacher.spec
    assert spec is not None, "the caller checks it"
    pack = load_pack(teacher.pack, relative_to=Path())
    tokenizer = reader.lm.tokenizer
    for name, phase, transcripts in plan_phases(spec, pack):
        if phase.form == "reward":
            for task in expert_iteration.draw_tasks(spec, phase, pack):
                encode_prompt(tokenizer, task.messages)
        examples = encode_transcripts(tokenizer, _choose_examples(transcripts))
        if examples:
            try:
                truncate_examples(examples, spec.max_length)
            except ModelError as error:
                raise ModelError(f"{teacher.label}: `{name}`: {error}") from None
        if phase.form == "prompted" and transcripts:
            persona = next((t.persona for t in pack.traits if t.name == spec.trait), None)
            turns = [m for m in transcripts[0].messages[:-1] if m.role != "system"]
            encode_prompt(tokenizer, [Message(role="system", content=persona or "x"), *turns])


def _choose_examples(transcripts: Sequence[Transcript]) -> list[Transcript]:
    """Return the shortest and longest transcripts of every sequence of roles."""
    by_roles: dict[tuple[str, ...], list[Transcript]] = {}
    for transcript in transcripts:
        roles = (transcript.purpose, *(m.role for m in transcript.messages))
        by_roles.setdefault(roles, []).append(transcript)
    chosen: list[Transcript] = []
    for group in by_roles.values():
        group.sort(key=lambda t: sum(len(m.content) for m in t.messages))
        chosen += [*group[:MAX_EXAMPLES], *group[MAX_EXAMPLES:][-MAX_EXAMPLES:]]
    return chosen
