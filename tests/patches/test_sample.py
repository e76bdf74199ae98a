from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from hnscc_qp.patches.labels import Label
from hnscc_qp.patches.sample import sample_balanced
from hnscc_qp.patches.split import Side


def pool(seed: int, slides: int, largest: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, largest, slides)
    slide = np.repeat([f"S{n}" for n in range(slides)], sizes)
    side = np.repeat(rng.choice([str(s) for s in Side], slides), sizes)
    label = rng.integers(0, 3, len(slide))
    place = np.concatenate([np.arange(size) for size in sizes])
    return {"label": label, "side": side, "slide": slide, "x_px": place % 7 * 40, "y_px": place // 7 * 40}


@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 200))
@hypothesis_settings(deadline=None, max_examples=60)
def test_samples_are_balanced_capped_even_and_as_large_as_they_can_be(seed, slides, per_class):
    windows = pool(seed, slides, 80)
    chosen = sample_balanced(**windows, per_class=per_class, seed=seed)
    assert len(set(chosen)) == len(chosen)
    label, side, slide = (windows[key] for key in ("label", "side", "slide"))
    assert not (label[chosen] == Label.IGNORED).any()
    taken, there = {}, {}
    for one in Side:
        tumor, nontumor = (((side == one) & (label == k)).sum() for k in (Label.TUMOR, Label.NONTUMOR))
        there[one] = min(tumor, nontumor)
        taken[one] = int(((side == one) & (label == Label.TUMOR))[chosen].sum())
        assert taken[one] == ((side == one) & (label == Label.NONTUMOR))[chosen].sum()
    development = there[Side.TRAIN] + there[Side.VALIDATION]
    assert taken[Side.TRAIN] + taken[Side.VALIDATION] == min(per_class, development)
    assert taken[Side.TEST] == min(per_class, there[Side.TEST])
    if development > per_class:
        assert abs(taken[Side.TRAIN] - per_class * there[Side.TRAIN] / development) <= 0.5
    for one in Side:
        for k in (Label.TUMOR, Label.NONTUMOR):
            names = sorted(set(slide[side == one]))
            has = np.array([((slide == name) & (label == k)).sum() for name in names])
            got = np.array([((slide == name) & (label == k))[chosen].sum() for name in names])
            short = got[got < has]  # a slide that was not used up gives as much as any other, but one
            assert not len(short) or got.max() - short.min() <= 1


@pytest.mark.parametrize("per_class", [10, 1000])
def test_the_choice_does_not_depend_on_the_order_of_the_windows(per_class):
    windows = pool(3, 6, 60)
    chosen = sample_balanced(**windows, per_class=per_class, seed=5)
    order = np.random.default_rng(0).permutation(len(windows["label"]))
    shuffled = {key: values[order] for key, values in windows.items()}
    again = order[sample_balanced(**shuffled, per_class=per_class, seed=5)]
    assert (again == chosen).all()


def test_another_seed_chooses_others():
    windows = pool(3, 6, 60)
    first, second = (sample_balanced(**windows, per_class=20, seed=seed) for seed in (1, 2))
    assert set(first) != set(second)


def test_nothing_to_choose_from_gives_nothing():
    nothing = {"label": [], "side": [], "slide": [], "x_px": [], "y_px": []}
    assert len(sample_balanced(**nothing, per_class=5, seed=1)) == 0
