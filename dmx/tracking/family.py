"""Where a run came from and what became of it: its ancestors and descendants in all experiments of a store."""

import json
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Self

from dmx.errors import RunError
from dmx.tracking.checkpoints import checkpoint_names
from dmx.tracking.lineage import SOURCE_RUN, SOURCES, children
from dmx.tracking.scores import ambiguous_cases, cases_key, cases_words, evaluations_of, misses
from dmx.tracking.store import RunInfo, RunReader

LINEAGE = "lineage.html"
"""The artifact that shows the family of a run."""
_VALIDATION = ("val_volume/dice", "val/dice", "val/accuracy", "val/r2")
_EVALUATION = ("evaluation/dice", "evaluation/accuracy", "evaluation/r2")
_FROZEN = ("normal", "subsampled", "fc", "layers")
_MOST_MEMBERS = 500


@dataclass(frozen=True, kw_only=True)
class Link:
    """A run that started from another one.

    Attributes:
        source: Id of the run that gave its weights.
        child: Id of the run that received them.
        checkpoint: Which weights, in words.
        share: Share of the child's parameters that they are.
    """

    source: str
    child: str
    checkpoint: str
    share: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Member:
    """A run of a family, as far as the family's picture tells of it.

    Attributes:
        id: Its id.
        name: ``experiment/run-name``; empty when the store has it no more.
        kind: ``train``, ``finetune``, …
        status: ``RUNNING``, ``FINISHED``, …
        cohort: Cohort that it trained on or scored, with the split where there is one.
        frozen: What was frozen, e.g. ``normal 1-3, fc 1``; ``None`` for a run that does not say.
        best: Metric and value of its best score.
        evaluations: Score with its name, and cohort, of the newest evaluation of each set of cases.
        origin: File of no run that its weights came from.
    """

    id: str
    name: str = ""
    kind: str = ""
    status: str = ""
    cohort: str = ""
    frozen: str | None = None
    best: tuple[str, float] | None = None
    evaluations: tuple[tuple[tuple[str, float], str], ...] = ()
    origin: str = ""

    @property
    def title(self) -> str:
        """Return what it is called."""
        return self.name or "a run that the store has no more"

    @property
    def facts(self) -> tuple[str, ...]:
        """Return what else there is to say, in short lines."""
        about = [word for word in (self.kind, self.status) if word]
        about += [f"cohort {self.cohort}"] if self.cohort else []
        about += [f"from file {self.origin}"] if self.origin else []
        over_epochs = "" if self.kind == "evaluate" else "best "
        scores = [f"{over_epochs}{self.best[0]} {self.best[1]:.3f}"] if self.best else []
        scores += [f"{name} {score:.3f} on {cohort}" for (name, score), cohort in self.evaluations]
        frozen = [] if self.frozen is None else [f"frozen: {self.frozen}" if self.frozen else "nothing frozen"]
        return tuple(line for line in (", ".join(about), *frozen, ", ".join(scores)) if line)


@dataclass(frozen=True, kw_only=True)
class Family:
    """A run with its ancestors and descendants.

    Attributes:
        run: Id of the run.
        members: All of them by id.
        links: Who came from whom.
    """

    run: str
    members: Mapping[str, Member]
    links: tuple[Link, ...]

    def sources(self, member: str) -> list[Link]:
        """Return where a member came from; what gave most parameters comes first."""
        return sorted((link for link in self.links if link.child == member), key=lambda link: -link.share)

    def children(self, member: str) -> list[str]:
        """Return the members whose main source is this one."""
        found = dict.fromkeys(link.child for link in self.links if link.source == member)
        return [child for child in found if self.sources(child)[0].source == member]

    def walk(self) -> Iterator[tuple[str, str | None, int]]:
        """Yield each member with its main source and the number of members above it, as a tree is written."""
        for root in self.roots():
            waiting: list[tuple[str, str | None, int]] = [(root, None, 0)]
            while waiting:
                member, source, depth = waiting.pop()
                yield member, source, depth
                waiting += [(child, member, depth + 1) for child in reversed(self.children(member))]

    def origin(self, member: str) -> list[str]:
        """Return in words which checkpoint a member came from, and which other runs' ones."""
        words = []
        for place, link in enumerate(self.sources(member)):
            parts = [link.checkpoint] if place == 0 else [self.members[link.source].title, link.checkpoint]
            share = f"{link.share:.0%} of the parameters" if link.share < 1 else ""
            words.append(", ".join(part for part in (*parts, share) if part))
        return [f"{'also ' if place else ''}from {text}" for place, text in enumerate(words) if text]

    def roots(self) -> list[str]:
        """Return the members that came from no other one."""
        return [member for member in self.members if not self.sources(member)]

    def replaced(self, member: Member) -> Self:
        """Return the family with another description of a member."""
        return replace(self, members={**self.members, member.id: member})


def find_family(store: RunReader, run: RunInfo) -> Family:
    """Return the ancestors and descendants of a run.

    Args:
        store: Where the runs are.
        run: The run, with what is known of it.
    """
    before, upward = _ancestors(store, run)
    after, downward = _descendants(store, run)
    links = tuple(dict.fromkeys((*upward, *downward)))
    runs = {**before, run.id: run, **after}
    # A descendant can have further sources, which are named too; where those come from does not matter here.
    runs |= {link.source: _get(store, link.source) for link in links if link.source not in runs}
    alike = ambiguous_cases([info for info in runs.values() if info is not None and info.kind == "evaluate"])
    members = {key: Member(id=key) if info is None else _member(store, info, alike) for key, info in runs.items()}
    return Family(run=run.id, members=members, links=links)


def _ancestors(store: RunReader, run: RunInfo) -> tuple[dict[str, RunInfo | None], list[Link]]:
    """Return all runs whose weights a run has received, the oldest first; ``None`` for those that are gone."""
    found: dict[str, RunInfo | None] = {}
    links: list[Link] = []
    waiting = [run]
    while waiting and len(found) < _MOST_MEMBERS:
        for link in source_links(waiting.pop(0)):
            links.append(link)
            if link.source not in found:
                found[link.source] = source = _get(store, link.source)
                waiting += [source] if source is not None else []
    return dict(reversed(found.items())), links[::-1]


def _get(store: RunReader, run_id: str) -> RunInfo | None:
    try:
        return store.get_run(run_id)
    except RunError:
        return None


def _descendants(store: RunReader, run: RunInfo) -> tuple[dict[str, RunInfo | None], list[Link]]:
    found: dict[str, RunInfo | None] = {}
    links: list[Link] = []
    waiting = [run]
    while waiting and len(found) < _MOST_MEMBERS:
        source = waiting.pop(0)
        for child in reversed(_children(store, source)):
            links += [link for link in source_links(child) if link not in links]
            if child.id not in found and child.id != run.id:
                found[child.id] = child
                waiting.append(child)
    return found, links


def _children(store: RunReader, run: RunInfo) -> list[RunInfo]:
    """Return the runs that started from a run, newest first; one without a checkpoint has none."""
    return children(store, run) if checkpoint_names(run.tags) else []


def source_links(run: RunInfo) -> list[Link]:
    """Return where a run's weights came from, by its tags."""
    path = run.tags.get("dmx.source_checkpoint", "").rpartition("/")[2]
    name = run.params.get("source.checkpoint", "")
    words = f"{name} ({path})" if name and path else name or path
    if SOURCES in run.tags:
        entries = json.loads(run.tags[SOURCES])
        return [
            Link(
                source=entry["run"],
                child=run.id,
                checkpoint=entry["checkpoint"].rpartition("/")[2],
                share=entry["share"],
            )
            for entry in entries
        ]
    source = run.tags.get(SOURCE_RUN)
    return [Link(source=source, child=run.id, checkpoint=words)] if source else []


def _member(store: RunReader, run: RunInfo, alike: Container[str] = ()) -> Member:
    return Member(
        id=run.id,
        name=f"{run.experiment}/{run.name}",
        kind=run.kind,
        status=run.status,
        cohort=cases_words(run, digest=cases_words(run) in alike),
        frozen=frozen_words(run.params),
        best=best_score(store, run),
        evaluations=() if run.kind == "evaluate" else tuple(_evaluations(store, run)),
        origin=run.tags.get("dmx.source_file", ""),
    )


def best_score(store: RunReader, run: RunInfo) -> tuple[str, float] | None:
    """Return the best value of the metric that tells most about a run, over all epochs."""
    if run.kind == "evaluate" and (evaluated := _evaluated(run)):
        return evaluated
    key = next((key for key in _VALIDATION if key in run.metrics), None)
    return None if key is None else (key, max(point.value for point in store.metric_history(run.id, key)))


def _evaluated(run: RunInfo) -> tuple[str, float] | None:
    """Return the score of an evaluation with its name."""
    return next(((key, run.metrics[key]) for key in _EVALUATION if key in run.metrics), None)


def _evaluations(store: RunReader, run: RunInfo) -> Iterator[tuple[tuple[str, float], str]]:
    newest: dict[str, RunInfo] = {}
    for child in evaluations_of(store, run) if checkpoint_names(run.tags) else ():
        if _evaluated(child):
            newest.setdefault(cases_key(child), child)
    alike = ambiguous_cases(list(newest.values()))
    for child in newest.values():
        if score := _evaluated(child):
            counts = misses(child.metrics)
            words = cases_words(child, digest=cases_words(child) in alike)
            yield score, f"{words} ({counts})" if "," in counts else words


def frozen_words(params: Mapping[str, str]) -> str | None:
    """Return what a run froze, from its params; empty: nothing, ``None``: it does not say.

    >>> frozen_words({"freeze.normal": "1,2,3,5", "freeze.fc": "", "freeze.norm_statistics": "frozen"})
    'normal 1-3 5'
    """
    if "freeze.normal" not in params:
        return None
    parts = [f"{name} {_ranges(text)}" for name in _FROZEN if (text := params.get(f"freeze.{name}", ""))]
    if parts and params.get("freeze.norm_statistics") == "updating":
        parts.append("norm statistics updating")
    return ", ".join(parts)


def _ranges(text: str) -> str:
    """Shorten lists of positions.

    >>> _ranges("1,2,3,5"), _ranges("1,2"), _ranges("features.*,head")
    ('1-3 5', '1 2', 'features.* head')
    """
    return re.sub(r"\d+(?:,\d+)+", lambda match: _short(list(map(int, match[0].split(",")))), text).replace(",", " ")


def _short(numbers: Sequence[int]) -> str:
    groups: list[list[int]] = []
    for number in numbers:
        if groups and number == groups[-1][-1] + 1:
            groups[-1].append(number)
        else:
            groups.append([number])
    words = chain.from_iterable([f"{g[0]}-{g[-1]}"] if len(g) > 2 else map(str, g) for g in groups)
    return " ".join(words)
