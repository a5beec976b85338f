"""Bars for what takes long."""

import io

import jaxcirc as jc


def test_a_bar_for_each_stage():
    out = io.StringIO()
    with jc.progress_bar(file=out, mininterval=0) as progress:
        for stage in ("nodes", "edges"):
            for done in range(4):
                progress(done, 3, stage)
    shown = out.getvalue()
    assert shown.index("nodes") < shown.index("edges")
    assert shown.count("3/3") >= 2


def test_bars_close_where_work_fails():
    out = io.StringIO()
    try:
        with jc.progress_bar(file=out) as progress:
            progress(1, 3, "nodes")
            raise KeyError
    except KeyError:
        pass
    assert out.getvalue().endswith("\n")
