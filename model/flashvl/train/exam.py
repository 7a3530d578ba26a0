"""Asking a trained model held-out questions under a policy of the study."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence

import numpy as np

from flashvl.generate import generate_batch
from flashvl.model import FlashVL
from flashvl.train.dataset import HELD_OUT
from flashvl.train.heldout import LONGEST_ANSWER
from flashvl.train.policies import Policy, config_for
from flashvl.train.tiled_example import TiledExample


def under(model: FlashVL, policy: Policy) -> FlashVL:
    """The same weights, run under another policy of the model's family."""
    shown = copy.copy(model)
    shown.config = config_for(model.config, policy)
    if shown.config.adapter != model.config.adapter:
        raise ValueError(
            f"policy {policy.name!r} is of the family {policy.family!r}, whose adapter takes "
            f"{shown.config.adapter.input} channels, but the model's takes "
            f"{model.config.adapter.input}; load the checkpoint of that family"
        )
    return shown


def answers(
    model: FlashVL, policy: Policy, cases: Sequence[TiledExample], batch: int = 32
) -> list[str]:
    """The greedy answers, stripped."""
    shown = under(model, policy)
    said = []
    for start in range(0, len(cases), batch):
        requests = [
            ([policy.framed(case.image)], [{"role": "user", "content": case.turn[0]}])
            for case in cases[start : start + batch]
        ]
        results = generate_batch(shown, requests, max_new_tokens=LONGEST_ANSWER)
        said += [result.text.strip() for result in results]
    return said


def right(model: FlashVL, policy: Policy, cases: Sequence[TiledExample]) -> list[bool]:
    """Whether each answer is exactly the one that is wanted."""
    found = answers(model, policy, cases)
    return [said == case.turn[1] for said, case in zip(found, cases, strict=True)]


def by_family(cases: Sequence[TiledExample], hits: Sequence[bool]) -> dict[str, tuple[int, int]]:
    """(right, total) of each family, in the order of the cases."""
    total = Counter(case.family for case in cases)
    good = Counter(case.family for case, hit in zip(cases, hits, strict=True) if hit)
    return {family: (good[family], count) for family, count in total.items()}


def shuffled(cases: Sequence[TiledExample], seed: int = 0) -> list[TiledExample]:
    """The control: every question with the picture of another case of its kind and size.

    The pictures of a kind and size move along one random cycle, so none keeps its own. A kind that
    a size has only once takes the picture of any other case of that size.
    """
    rng = np.random.default_rng((HELD_OUT, seed))
    groups: dict[tuple[str, tuple[int, int]], list[int]] = {}
    for index, case in enumerate(cases):
        groups.setdefault((case.turn[2], case.size), []).append(index)
    given = list(range(len(cases)))
    for (_, size), members in sorted(groups.items()):
        if len(members) == 1:
            (alone,) = members
            others = [i for i, case in enumerate(cases) if case.size == size and i != alone]
            given[alone] = others[int(rng.integers(len(others)))] if others else alone
            continue
        cycle = [members[i] for i in rng.permutation(len(members))]
        for here, there in zip(cycle, cycle[1:] + cycle[:1], strict=True):
            given[here] = there
    return [
        TiledExample(cases[there].image, case.turn, case.family, case.boxes)
        for case, there in zip(cases, given, strict=True)
    ]


def best_blind_guess(cases: Sequence[TiledExample]) -> float:
    """How often the most frequent answer to each question kind is right."""
    seen: dict[str, Counter[str]] = {}
    for case in cases:
        seen.setdefault(case.turn[2], Counter())[case.turn[1]] += 1
    return sum(max(counted.values()) for counted in seen.values()) / len(cases)
