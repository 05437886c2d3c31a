import json

import numpy as np
import pytest

from benchmarks import input as ways_in
from benchmarks import record, report, sample


def rows(ratio):
    case = {"case": "vae", "ratio": ratio, "lowest": ratio - 0.1, "highest": ratio + 0.2}
    return [case | {"size": None}, case | {"size": "small"}]


def test_a_page_has_a_table_and_a_plot_of_what_was_written(tmp_path):
    results = tmp_path / "results"
    path = record.write("peers", rows(1.5), folder=results, torch="2.13.0")
    record.write("unknown", [{"x": 1}], folder=results)
    text = report.page(results)
    assert "| vae |  | 1.50 | 1.40 | 1.70 |" in text and "| vae | small |" in text
    assert "torch 2.13.0" in text and "![Ratios of speed](results/peers.png)" in text
    assert json.loads(path.read_text())["versions"]["torch"] == "2.13.0"
    assert (results / "peers.png").read_bytes().startswith(b"\x89PNG")


def test_what_fell_more_than_a_tenth_is_named(tmp_path):
    by = ("case", "size")
    assert record.regressions(record.read("peers", tmp_path), rows(1.0), by, "ratio") == []
    record.write("peers", rows(1.0), folder=tmp_path)
    before = record.read("peers", tmp_path)
    assert record.regressions(before, rows(0.91), by, "ratio") == []
    slower = [rows(0.91)[0], rows(0.89)[1], {"case": "new", "ratio": 0.1}]
    found = record.regressions(before, slower, by, "ratio")
    assert found == ["vae small: ratio fell from 1.0 to 0.89"]


def sampler(solver, steps, batch=4):
    second = np.array([[1.0, 2.0, 4.0], [3.0, 8.0, 0.0], [2.0, 5.0, 1.0]])
    first = np.array([[1.0, 4.0, 1.0], [1.0, 4.0, 1.0], [1.0, 5.0, 1.0]])
    warm = np.stack([np.arange(11.0) / 10 + 1, np.arange(11.0) / 100], axis=1)
    row = {"experiment": "demo", "solver": solver, "steps": steps}
    return row | sample.summary(second, first, warm, batch)


def test_a_samplers_row_tells_cold_from_warm():
    row = sampler("ddim", 10)
    assert (row["trace_seconds"], row["compile_seconds"]) == (2, 5)
    assert row["first_run_seconds"] == 1
    assert row["cold_seconds"] == 8  # the median of 7, 11 and 8
    assert row["compile_ratio"] == 1  # the median of 1/2, 2 and 1
    assert row["samples_per_second"] == pytest.approx(4 / 1.5, abs=0.01)
    assert row["samples_per_second_p10"] == pytest.approx(4 / 1.9, abs=0.01)
    quantiles = [row[f"latency_milliseconds{each}"] for each in ("_p10", "", "_p90")]
    assert quantiles == [10, 50, 90]


def test_solvers_and_steps_are_crossed_where_there_is_a_choice():
    experiment = sample.make("ddpm_digits")
    cases = sample.choices(experiment, [], [10, 20])
    assert {case["solver"] for case in cases} == {"ddpm", "ddim", "euler", "heun", "dpmpp_2m"}
    assert len(cases) == 10
    cases = sample.choices(experiment, ["heun"], [7])
    assert cases == [{"solver": "heun", "steps": 7}]
    without = experiment._replace(task=experiment.task._replace(sample=lambda *args: None))
    assert sample.choices(without, [], [10, 20]) == [{}]


def test_the_samplers_page_shows_both_and_a_plot(tmp_path):
    results = tmp_path / "results"
    rows = [sampler(solver, steps) for solver in ("ddim", "heun") for steps in (10, 100)]
    record.write("sample", [*rows, {"experiment": "a vae", "batch": 4}], folder=results)
    text = report.page(results)
    assert "| demo | ddim | 10 | 4 | 2.7 | 50.0 | 10.0 | 90.0 | 8.0 |" in text
    assert "| a vae |  |  | 4 |" in text
    assert "(results/sample.png)" in text and (results / "sample.png").exists()


def test_a_ways_ratio_is_of_rates_in_the_same_round():
    row = ways_in.summary([100.0, 300.0, 200.0, 400.0, 500.0], [100.0, 100.0, 100.0, 100.0, 500.0])
    assert (row["images_per_second"], row["peer_images_per_second"]) == (300, 100)
    assert (row["lowest"], row["ratio"], row["highest"]) == (1, 2, 3)
    assert set(ways_in.summary([100.0])) == {
        "images_per_second",
        "images_per_second_p25",
        "images_per_second_p75",
    }


def test_batches_ahead_are_not_counted():
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield

    rate = ways_in._rate(endless, seconds=0.01, workers=3)
    counted = len(taken) - 3 * ways_in.AHEAD
    assert counted > 0 and counted % 3 == 0
    assert 0 < rate <= counted * ways_in.BATCH / 0.01


@pytest.mark.parametrize("beside", [True, False])
def test_the_input_page_has_columns_of_a_peer_only_beside_one(tmp_path, beside):
    results = tmp_path / "results"
    row = {"source": "MNIST", "path": "memory", "images_per_second": 1000}
    peer = {"ratio": 2.0, "lowest": 1.5, "highest": 2.5, "peer": "batches"}
    record.write("input", [row | peer if beside else row, row], folder=results)
    text = report.page(results)
    assert ("| MNIST | memory | 1,000 | 2.00 | 1.50 | 2.50 | batches |" in text) == beside
    assert ("| MNIST | memory | 1,000 |\n" in text) != beside
    assert (results / "input.png").exists() == ("results/input.png" in text) == beside
