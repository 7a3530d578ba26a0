"""The rule that decides whether a result is right, where one draw of a call's values does not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flashvl_kernels import numerics
from flashvl_kernels.spec import REGISTRY

SPEC = REGISTRY["rms_norm"]
Draw = tuple[list[Tensor], list[Tensor], list[Tensor]]


def drawn(draw: int, error: float, lucky: bool = True) -> Draw:
    """A result that errs by `error` times 1e-3 beside a plain one that errs by 1e-3, and in a lucky
    first draw by nothing."""
    truth = torch.randn(8, generator=torch.Generator().manual_seed(draw)).double()
    sign = torch.where(torch.arange(8) % 2 == 0, 1.0, -1.0)
    plain = truth + (0.0 if lucky and draw == 0 else 1e-3) * sign
    return [(truth + error * 1e-3 * sign).float()], [plain.float()], [truth]


def test_a_bound_that_luck_made_too_narrow_is_drawn_again() -> None:
    assert numerics.refusal(SPEC, *drawn(0, 1.5))
    assert not numerics.refusal_over_draws(SPEC, lambda draw: drawn(draw, 1.5))


@pytest.mark.parametrize("lucky", (True, False))
def test_what_errs_too_much_in_every_draw_stays_wrong(lucky: bool) -> None:
    assert numerics.refusal_over_draws(SPEC, lambda draw: drawn(draw, 3.0, lucky))


def test_one_element_of_one_draw_is_enough() -> None:
    def spoiled(draw: int) -> Draw:
        got, plain, truth = drawn(draw, 1.5)
        if draw == 0:
            got[0][5] += 0.1
        return got, plain, truth

    assert numerics.refusal_over_draws(SPEC, spoiled)


@pytest.mark.parametrize(("error", "right"), [(6e-3, True), (1e-2, False)])
def test_how_large_the_plain_error_gets_is_asked_of_more_draws(
    error: float, right: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It errs by 4e-3 in one draw of a thousand: that counts, twice, and no more than that."""

    def plain(number: int) -> Draw:
        got, naive, truth = drawn(number, 1.0, lucky=False)
        if number == 700:
            naive[0][2] += 3e-3
        return got, naive, truth

    monkeypatch.setattr(numerics, "results", lambda spec, run, args: plain(*args)[1])
    monkeypatch.setattr(numerics, "oracle", lambda spec, args: plain(*args)[2])

    def spoiled(draw: int) -> Draw:
        got, naive, truth = plain(draw)
        if draw == 0:
            got[0][2] += error - 1e-3
        return got, naive, truth

    assert numerics.refusal_over_draws(SPEC, spoiled)
    assert (not numerics.refusal_over_draws(SPEC, spoiled, lambda draw: (draw,))) == right


def test_a_right_first_draw_is_enough() -> None:
    def once(draw: int) -> Draw:
        assert draw == 0
        return drawn(draw, 1.5, lucky=False)

    assert not numerics.refusal_over_draws(SPEC, once)
