"""The forms of all records of a build or a run: numbered, evidence gathered, and then decided."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from grpo_stream.errors import ConfigError
from grpo_stream.records.evidence import Evidence, SizeOf
from grpo_stream.records.formats.chats.places import PAIR_WARNING
from grpo_stream.records.formats.forms import Form
from grpo_stream.records.formats.open_inputs import RuleFlags
from grpo_stream.records.formats.readers import reader_of
from grpo_stream.records.formats.rules import Rules
from grpo_stream.records.readings import Decision, decide
from grpo_stream.records.undecided import undecided_text

_USUAL_SHARE = 0.25


class FormBook:
    """Every form of every input, in the order in which they came by.

    Args:
        rules: For each input what the user calls the fields of its plain records.
    """

    def __init__(self, rules: Sequence[Rules]) -> None:
        self._base = rules
        self._numbers: dict[tuple[int, Form], int] = {}
        self._evidence: list[Evidence] = []
        self._counts: list[int] = []
        self._of_kind: dict[tuple[int, Form], Evidence] = {}

    def number(self, input_number: int, form: Form) -> int:
        """The number of a form of an input; it is the same for the same records."""
        key = (input_number, form)
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self._evidence)
            # Forms that only differ in what is warned of are written in one way.
            kind = (input_number, form._replace(warning=None))
            if kind not in self._of_kind:
                self._of_kind[kind] = Evidence(_with_keys(self._base[input_number], form))
            self._evidence.append(self._of_kind[kind])
            self._counts.append(0)
        return number

    def add(self, number: int, index: int, record: Any) -> None:
        """Takes a record of a form as evidence."""
        if type(record) is dict:
            self._evidence[number].add(index, record)
            self._counts[number] += 1

    def image_key(self, number: int) -> str:
        """The field that names the image in records of a form."""
        return self._evidence[number].rules.image_key

    def decide(
        self, size_of: SizeOf, flags: RuleFlags | None, accepted: str | None
    ) -> "DecidedForms":
        """Decides how each form is read.

        Args:
            size_of: Gives the size of a record's image.
            flags: What the user said.
            accepted: What the user takes where the records do not decide.
        """
        decisions: list[Decision] = []
        decided: dict[int, Decision] = {}
        for (number, form), evidence, count in zip(
            self._numbers, self._evidence, self._counts, strict=True
        ):
            if id(evidence) not in decided:
                told = _told(self._base[number], flags)
                looked = evidence.looked(size_of)
                decided[id(evidence)] = decide(form, looked, count, told, accepted)
            total = evidence.sampled.num_seen
            is_usual = form.warning is None or form.warning[0] != PAIR_WARNING
            if not is_usual and count > _USUAL_SHARE * total:
                form = form._replace(warning=None)  # noqa: PLW2901 - pairs are what they have
            decisions.append(replace(decided[id(evidence)], form=form, num_records=count))
        told_names = _told_names(flags)
        rules = [
            replace(
                evidence.rules,
                box_format=decision.reading.box_format,
                coords=decision.reading.coords,
                warning=decision.form.warning,
                told=told_names,
            )
            for evidence, decision in zip(self._evidence, decisions, strict=True)
        ]
        return DecidedForms([number for number, _ in self._numbers], decisions, rules)


class DecidedForms:
    """How each form is read.

    Args:
        inputs: For each form the number of its input.
        decisions: For each form.
        rules: For each form.
    """

    def __init__(
        self, inputs: Sequence[int], decisions: Sequence[Decision], rules: Sequence[Rules]
    ) -> None:
        self.rules = tuple(rules)
        self._inputs = inputs
        self._decisions = decisions

    def check(self, names: Sequence[str], *, can_accept: bool = False) -> None:
        """Stops where the records of a form do not decide.

        Args:
            names: The inputs'.
            can_accept: There is a flag ``--accept-reading``.

        Raises:
            ConfigError: with the readings that fit and the flags for each.
        """
        open_ones = [(n, d) for n, d in self._of_records() if not d.is_decided]
        if open_ones:
            number, decision = open_ones[0]
            raise ConfigError(
                "INPUT", names[number], undecided_text(decision, can_accept=can_accept)
            )

    def input_of(self, number: int) -> int:
        """The number of the input that a form is of."""
        return self._inputs[number]

    def lines(self, names: Sequence[str]) -> list[str]:
        """For people, how each form of each input is read."""
        return [f"reading {names[n]}: {d.line()}" for n, d in self._of_records()]

    def facts(self, names: Sequence[str]) -> list[dict[str, object]]:
        """The same for programs and the manifest."""
        return [{"input": names[n], **d.facts()} for n, d in self._of_records()]

    def _of_records(self) -> Iterator[tuple[int, Decision]]:
        pairs = zip(self._inputs, self._decisions, strict=True)
        return ((number, decision) for number, decision in pairs if decision.num_records)


def _with_keys(base: Rules, form: Form) -> Rules:
    if not reader_of(form.reader).has_own_fields:
        return base
    own = Rules()
    return replace(
        base,
        image_key=own.image_key,
        prompt_key=own.prompt_key,
        solution_key=own.solution_key,
    )


def _told_names(flags: RuleFlags | None) -> tuple[str, ...]:
    said = flags or RuleFlags()
    return tuple(name for name in ("box_format", "coords") if getattr(said, name) is not None)


def _told(base: Rules, flags: RuleFlags | None) -> RuleFlags:
    """What was said of the numbers, by flags or by a program's rules that are not the default."""
    default = Rules()
    box_format = base.box_format if base.box_format != default.box_format else None
    coords = base.coords if base.coords != default.coords else None
    if flags is not None:
        box_format, coords = flags.box_format or box_format, flags.coords or coords
    return RuleFlags(box_format=box_format, coords=coords)
