from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from hnscc_qp.patches.labels import Label
from hnscc_qp.patches.sample import Supply, draw_windows, share_out
from hnscc_qp.patches.split import Side

BOTH = (Label.TUMOR, Label.NONTUMOR)


def supply(
    slide: str, *, tumor: int, nontumor: int, patient: str | None = None, side: Side = Side.TRAIN
) -> Supply:
    windows = {Label.TUMOR: tumor, Label.NONTUMOR: nontumor, Label.IGNORED: 7}
    return Supply(slide, patient or slide, side, tumor > 0, windows)


def cohort(seed: int, slides: int, largest: int) -> list[Supply]:
    rng = np.random.default_rng(seed)
    side_of = rng.choice(np.array(list(Side), object), 6)
    return [
        supply(
            f"S{n}",
            tumor=int(rng.integers(0, largest)) * int(rng.integers(0, 2)),
            nontumor=int(rng.integers(0, largest)),
            patient=f"P{(patient := int(rng.integers(0, 6)))}",
            side=side_of[patient],
        )
        for n in range(slides)
    ]


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 200), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
@hypothesis_settings(deadline=None, max_examples=150)
def test_shares_are_balanced_capped_even_and_as_large_as_they_can_be(seed, slides, per_class, ratio):
    supplies = cohort(seed, slides, 80)
    quotas = share_out(supplies, per_class=per_class, nontumor_from_negative=ratio, seed=seed)
    taken, there = {}, {}
    for side in Side:
        here = [one for one in supplies if one.side is side]
        got = {label: sum(quotas[one.slide, label] for one in here) for label in BOTH}
        assert got[Label.TUMOR] == got[Label.NONTUMOR]
        taken[side] = got[Label.TUMOR]
        there[side] = min(sum(one.windows[label] for one in here) for label in BOTH)
        # The ratio, where both kinds of slides have enough.
        kinds = {kind: [one for one in here if one.positive is kind] for kind in (True, False)}
        gave, has = (
            {kind: sum(count(one) for one in ones) for kind, ones in kinds.items()}
            for count in (
                lambda one: quotas[one.slide, Label.NONTUMOR],
                lambda one: one.windows[Label.NONTUMOR],
            )
        )
        if gave[True] < has[True] and gave[False] < has[False]:
            assert abs(gave[False] - ratio * taken[side]) <= 0.5
        # Patients of a kind that were not used up give as much as any other, but one; so do their slides.
        for kind, label in ((True, Label.TUMOR), (True, Label.NONTUMOR), (False, Label.NONTUMOR)):
            of_kind = here if label is Label.TUMOR else kinds[kind]
            by_patient = {}
            for one in of_kind:
                by_patient.setdefault(one.patient, []).append((quotas[one.slide, label], one.windows[label]))
            groups = [
                [tuple(map(sum, zip(*slides_, strict=True))) for slides_ in by_patient.values()],
                *by_patient.values(),
            ]
            for group in groups:
                short = [got for got, has in group if got < has]
                assert all(got <= has for got, has in group)
                assert not short or max(got for got, _ in group) - min(short) <= 1
    development = there[Side.TRAIN] + there[Side.VALIDATION]
    assert taken[Side.TRAIN] + taken[Side.VALIDATION] == min(per_class, development)
    assert taken[Side.TEST] == min(per_class, there[Side.TEST])
    if development > per_class:
        assert abs(taken[Side.TRAIN] - per_class * there[Side.TRAIN] / development) <= 0.5


def test_a_patient_with_many_slides_gives_no_more_than_one_with_a_single_slide():
    many = [supply(f"M{n}", tumor=100, nontumor=0, patient="M") for n in range(9)]
    one = supply("O", tumor=100, nontumor=0)
    quotas = share_out(
        [*many, one, supply("N", tumor=0, nontumor=500)], per_class=90, nontumor_from_negative=1.0, seed=1
    )
    assert quotas["O", Label.TUMOR] == 45
    assert {quotas[f"M{n}", Label.TUMOR] for n in range(9)} == {5}


@pytest.mark.parametrize(
    ("ratio", "negative", "positive"), [(0.5, 50, 50), (0.2, 20, 80), (0.0, 0, 100), (1.0, 70, 30)]
)
def test_nontumor_comes_from_negative_slides_in_the_stated_ratio_as_far_as_they_go(ratio, negative, positive):
    supplies = [supply("P", tumor=100, nontumor=300), supply("N", tumor=0, nontumor=70)]
    quotas = share_out(supplies, per_class=100, nontumor_from_negative=ratio, seed=1)
    assert (quotas["N", Label.NONTUMOR], quotas["P", Label.NONTUMOR]) == (negative, positive)


@given(st.integers(0, 10**6))
@hypothesis_settings(deadline=None, max_examples=30)
def test_the_order_of_the_slides_does_not_matter(seed):
    supplies = cohort(seed, 8, 60)
    shuffled = random.Random(seed).sample(supplies, len(supplies))
    first, second = (
        share_out(some, per_class=50, nontumor_from_negative=0.5, seed=3) for some in (supplies, shuffled)
    )
    assert first == second


def test_draws_are_distinct_rising_and_depend_on_seed_slide_and_label():
    drawn = draw_windows(500, 100, slide="S1", label=Label.TUMOR, seed=1)
    assert len(set(drawn.tolist())) == 100 and (np.diff(drawn) > 0).all() and drawn.max() < 500
    others = [
        draw_windows(500, 100, slide="S1", label=Label.TUMOR, seed=2),
        draw_windows(500, 100, slide="S2", label=Label.TUMOR, seed=1),
        draw_windows(500, 100, slide="S1", label=Label.NONTUMOR, seed=1),
    ]
    assert all((other != drawn).any() for other in others)
    assert (draw_windows(500, 100, slide="S1", label=Label.TUMOR, seed=1) == drawn).all()


def test_every_window_is_as_likely_as_any_other():
    counts = np.zeros(50)
    for seed in range(400):
        counts[draw_windows(50, 10, slide="S", label=Label.TUMOR, seed=seed)] += 1
    # Chi-square with 49 degrees of freedom, scaled for drawing without putting back: far beyond its tail.
    assert ((counts - 80) ** 2 / 80).sum() < 90


def test_nothing_to_choose_from_gives_nothing():
    assert share_out([], per_class=5, nontumor_from_negative=0.5, seed=1) == {}
