"""Counter-based draws: the published generator, uniform, and a function of the key alone."""

from __future__ import annotations

import math

import numpy as np

from twilbert.data.stream.randomness import Purpose, bits, key, uniform


def test_splitmix64_gives_the_published_numbers():
    """The first outputs of splitmix64 from state 1234567 (Rosetta Code's reference values)."""
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert bits(np.array(1234567, np.uint64), np.arange(5, dtype=np.uint64)).tolist() == expected


def test_uniforms_are_uniform_and_uncorrelated_across_every_part_of_the_key():
    n = 200_000
    numbers = np.arange(n, dtype=np.uint64)
    base = uniform(key(0, Purpose.SPAN_START, 0, 0), numbers)
    counts = np.bincount((base * 100).astype(int), minlength=100)
    chi_square = ((counts - n / 100) ** 2 / (n / 100)).sum()
    assert chi_square < 149  # 99 degrees of freedom, p = 0.001
    others = {
        "next number": uniform(key(0, Purpose.SPAN_START, 0, 0), numbers + np.uint64(1)),
        "next seed": uniform(key(1, Purpose.SPAN_START, 0, 0), numbers),
        "other purpose": uniform(key(0, Purpose.SPAN_LENGTH, 0, 0), numbers),
        "next epoch": uniform(key(0, Purpose.SPAN_START, 1, 0), numbers),
        "next sample": uniform(key(0, Purpose.SPAN_START, 0, 1), numbers),
        "by sample": uniform(key(0, Purpose.SPAN_START, 0, np.arange(n)), 0),
        "by epoch": uniform(key(0, Purpose.SPAN_START, np.arange(n), 0), 0),
    }
    for what, other in others.items():
        assert abs(np.corrcoef(base, other)[0, 1]) < 4 / math.sqrt(n), what
        assert abs(other.mean() - 0.5) < 4 * math.sqrt(1 / 12 / n), what
    assert base.min() >= 0 and base.max() < 1


def test_a_draw_does_not_depend_on_what_is_drawn_beside_it():
    keys = key(5, Purpose.TOKEN_CHOICE, np.array([0, 0, 1]), np.array([10, 11, 10]))
    together = uniform(keys[:, None], np.arange(50, dtype=np.uint64)[None])
    alone = uniform(key(5, Purpose.TOKEN_CHOICE, 1, 10), np.uint64(49))
    assert together[2, 49] == alone
