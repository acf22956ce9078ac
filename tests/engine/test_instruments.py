"""Counters, gauges and histograms, and their text as a scraper reads it."""

from __future__ import annotations

import math
import threading

import pytest
from exposition_text import parsed
from hypothesis import given, settings
from hypothesis import strategies as st

from izwi_lab.engine.instruments import Counter, Gauge, Histogram
from izwi_lab.errors import InvalidInputError

hostile = st.text(alphabet=st.sampled_from('ab"\\\n{}=,# é😀'), max_size=12)


@settings(max_examples=100, deadline=None)
@given(values=st.dictionaries(hostile, st.floats(0, 1e300), max_size=5), about=hostile)
def test_any_label_and_any_number_is_read_back(values, about):
    counter, gauge = Counter("izwi:x_total", about, ("model_name",)), Gauge("izwi:y", about, ("model_name",))
    for label, value in values.items():
        counter.add(value, label)
        gauge.set(-value, label)
    found = parsed(counter.text() + gauge.text())
    assert found == {
        **{("izwi:x_total", (("model_name", k),)): v for k, v in values.items()},
        **{("izwi:y", (("model_name", k),)): -v for k, v in values.items()},
    }


def test_the_text_is_what_the_format_says():
    spread = Histogram("izwi:t_seconds", 'A "time"\nin \\ seconds.', (0.1, 1, 2.5), ("model_name",))
    for value in (0.05, 0.1, 0.7, 9.0):
        spread.observe(value, "m")
    assert spread.text() == (
        '# HELP izwi:t_seconds A "time"\\nin \\\\ seconds.\n'
        "# TYPE izwi:t_seconds histogram\n"
        'izwi:t_seconds_bucket{model_name="m",le="0.1"} 2.0\n'
        'izwi:t_seconds_bucket{model_name="m",le="1.0"} 3.0\n'
        'izwi:t_seconds_bucket{model_name="m",le="2.5"} 3.0\n'
        'izwi:t_seconds_bucket{model_name="m",le="+Inf"} 4.0\n'
        'izwi:t_seconds_sum{model_name="m"} 9.85\n'
        'izwi:t_seconds_count{model_name="m"} 4.0\n'
    )
    bare = Gauge("up", "Is it?")
    for value, shown in ((1, "1.0"), (math.inf, "+Inf"), (-math.inf, "-Inf"), (math.nan, "NaN")):
        bare.set(value)
        assert bare.text().splitlines()[-1] == f"up {shown}"


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.floats(-10, 500), min_size=1, max_size=60), share=st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]))
def test_a_quantile_lies_in_the_bucket_of_the_true_one(values, share):
    bounds = (0.0, 1.0, 5.0, 20.0, 100.0)
    spread = Histogram("t", "", bounds)
    for value in values:
        spread.observe(value)
    true = sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
    low = max((b for b in bounds if b < true), default=-math.inf)
    high = min((b for b in bounds if b >= true), default=math.inf)
    found = spread.quantile(share)
    assert max(low, min(values)) - 1e-9 <= found <= min(high, max(values)) + 1e-9
    assert spread.count() == len(values) and spread.mean() == pytest.approx(sum(values) / len(values))


def test_quantiles_of_what_is_spread_evenly():
    spread = Histogram("t", "", range(10, 101, 10))
    for value in range(1, 101):
        spread.observe(value)
    assert [spread.quantile(share) for share in (0.5, 0.9, 0.99)] == pytest.approx([50, 90, 99], abs=1)
    empty = Histogram("e", "", (1,))
    assert math.isnan(empty.quantile(0.5)) and math.isnan(empty.mean()) and empty.count() == 0
    assert parsed(empty.text()) == {}


def test_series_are_read_and_forgotten():
    counter = Counter("c_total", "", ("model_name", "reason"))
    counter.add(1, "a", "stop")
    counter.add(2, "a", "error")
    counter.add(4, "b", "stop")
    assert counter.value("a", "error") == 2 and counter.value("nobody", "stop") == 0
    counter.forget("a")
    assert counter.series() == (("b", "stop"),)
    gauge = Gauge("g", "", ("model_name",))
    assert math.isnan(gauge.value("a"))


def test_threads_lose_no_count():
    counter, spread = Counter("c_total", ""), Histogram("h", "", (1,))

    def count() -> None:
        for _ in range(2000):
            counter.add(1)
            spread.observe(2)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        parsed(counter.text() + spread.text())
    for thread in threads:
        thread.join()
    assert counter.value() == spread.count() == 8000


@pytest.mark.parametrize(
    "make",
    [
        lambda: Counter("1x", ""),
        lambda: Counter("x y", ""),
        lambda: Histogram("x", "", (1,), ("le",)),
        lambda: Gauge("x", "", ("a:b",)),
        lambda: Histogram("x", "", ()),
        lambda: Histogram("x", "", (1, 1)),
        lambda: Histogram("x", "", (1, math.inf)),
        lambda: Histogram("x", "", (1,)).observe(math.nan),
        lambda: Histogram("x", "", (1,)).quantile(1.5),
        lambda: Counter("x", "").add(-1),
        lambda: Counter("x", "").add(math.nan),
        lambda: Counter("x", "").add(1, "a"),
        lambda: Gauge("x", "", ("a",)).set(1),
    ],
)
def test_what_makes_no_sense_is_refused(make):
    with pytest.raises(InvalidInputError):
        make()
