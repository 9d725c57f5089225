import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipkit.config.units import LARGEST, SUFFIXES, Duration, parse_bytes, parse_count

counts = st.integers(0, LARGEST)


@given(counts)
def test_a_whole_number_is_itself_in_every_spelling(n):
    assert parse_count(n) == parse_count(str(n)) == parse_count(f"{n:_}") == parse_count(float(n)) == n


@given(st.integers(0, 900), st.sampled_from(sorted(SUFFIXES)))
def test_a_suffix_multiplies_exactly(n, suffix):
    assert parse_count(f"{n}{suffix}") == parse_count(f"{n} {suffix}") == n * SUFFIXES[suffix]


@pytest.mark.parametrize(
    ("text", "count"),
    [("1e5", 100_000), ("1.28G", 1_280_000_000), ("0.5Ki", 512), ("2_000", 2000), ("1.5e3k", 1_500_000)],
)
def test_spellings(text, count):
    assert parse_count(text) == count


@pytest.mark.parametrize(
    ("text", "count"), [("200GB", 200 * 10**9), ("64 GiB", 2**36), ("1.5kB", 1500), (7, 7), ("7B", 7)]
)
def test_bytes(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize("bad", ["lots", "B", "GB", "200 gb", "5BB", True, None, "-1GB"])
def test_no_bytes(bad):
    with pytest.raises(ValueError, match="expected bytes, such as 200GB"):
        parse_bytes(bad)


@pytest.mark.parametrize(
    "bad",
    [
        "",
        " ",
        "-1",
        -1,
        "1.5",
        1.5,
        "32K",
        "32 ki",
        "0.3Ki",
        "1e999999999",
        "1e-999999999",
        "9" * 5000,
        float("nan"),
        float("inf"),
        True,
        None,
        [1],
        "1 000",
        "٣",
        "0x10",
        "1e5 samples",
        LARGEST + 1,
    ],
)
def test_what_is_no_count(bad):
    with pytest.raises(ValueError, match=r"expected a count|whole number"):
        parse_count(bad)


durations = st.one_of(
    st.builds(Duration, counts.map(float), st.sampled_from(["samples", "steps"])),
    st.builds(
        Duration,
        st.one_of(st.integers(0, 10**6).map(float), st.floats(1e-3, 1e6).map(lambda x: round(x, 6))),
        st.sampled_from(["epochs", "seconds"]),
    ),
)


@given(durations)
def test_a_duration_reads_back_from_its_text(duration):
    assert Duration.parse(str(duration)) == duration
    assert Duration.parse(duration) is duration


@pytest.mark.parametrize(
    ("text", "value", "unit", "written"),
    [
        ("128M samples", 128e6, "samples", "128M samples"),
        ("1.28G samples", 1.28e9, "samples", "1280M samples"),
        ("32Ki samples", 32768, "samples", "32Ki samples"),
        ("30 epochs", 30, "epochs", "30 epochs"),
        ("1 epoch", 1, "epochs", "1 epoch"),
        ("0.5epochs", 0.5, "epochs", "0.5 epochs"),
        ("500 steps", 500, "steps", "500 steps"),
        ("10ksteps", 10_000, "steps", "10k steps"),
        ("2h", 7200, "seconds", "2h"),
        ("90 min", 5400, "seconds", "90min"),
        ("30m", 1800, "seconds", "30min"),
        ("1.5s", 1.5, "seconds", "1.5s"),
        ("2 days", 172_800, "seconds", "2d"),
    ],
)
def test_durations(text, value, unit, written):
    duration = Duration.parse(text)
    assert (duration.value, duration.unit, str(duration)) == (value, unit, written)


@pytest.mark.parametrize("bare", [500, 5.0, "500", "10M", "1e5"])
def test_a_bare_number_says_that_it_has_no_unit(bare):
    with pytest.raises(ValueError, match=r"a bare number has no unit; write .* '500 steps'"):
        Duration.parse(bare)


@pytest.mark.parametrize(
    "bad", ["", "steps", "-5 steps", "5 stepps", "10 K steps", "1.5 steps", "1e30 samples", True, None, []]
)
def test_what_is_no_duration(bad):
    with pytest.raises(ValueError, match=r"expected a|is no unit|not a whole number"):
        Duration.parse(bad)


def test_durations_in_samples_and_steps():
    assert Duration.parse("10 steps").samples(32) == 320
    assert Duration.parse("100 samples").samples(32) == 100
    assert Duration.parse("100 samples").steps(32) == 4  # the last one is short
    assert Duration.parse("2.5 epochs").samples(32, 101) == 252
    with pytest.raises(ValueError, match="size of an epoch"):
        Duration.parse("1 epoch").samples(32)
    with pytest.raises(ValueError, match="'2h' is a time"):
        Duration.parse("2h").samples(32, 100)
