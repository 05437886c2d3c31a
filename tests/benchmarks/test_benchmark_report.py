import json

from benchmarks import record, report


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
    assert record.regressions("peers", rows(1.0), by, "ratio", tmp_path) == []
    record.write("peers", rows(1.0), folder=tmp_path)
    assert record.regressions("peers", rows(0.91), by, "ratio", tmp_path) == []
    slower = [rows(0.91)[0], rows(0.89)[1], {"case": "new", "ratio": 0.1}]
    found = record.regressions("peers", slower, by, "ratio", tmp_path)
    assert found == ["vae small: ratio fell from 1.0 to 0.89"]
