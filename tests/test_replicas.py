"""What two and three ranks see together: weights that drifted apart, and a row of zero norm on one of them."""

JOBS = __file__.replace("test_replicas.py", "guard_jobs.py")


def test_one_bit_of_one_rank_is_found_and_named(two_ranks, three_ranks):
    for equal, words in two_ranks.run(JOBS, "differ"):
        assert equal is None
        assert words == "ranks 0, 1 hold other bits (no majority), the first in b"
    for equal, words in three_ranks.run(JOBS, "differ"):
        assert equal is None
        assert words == "rank 1 holds other bits than the 2 ranks that agree, the first in b"


def test_a_zero_row_of_one_rank_skips_the_step_on_every_rank_and_is_named(two_ranks):
    assert two_ranks.run(JOBS, "zero_row") == [(1.0, [(1, 1, "image", ["c"])])] * 2
