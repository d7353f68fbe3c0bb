"""Pictures beside results: whatever goes wrong with one is a line of warning, and nothing more."""

import pytest

from mats_ds.visualization.drawing import fit_label, fit_title, plain_drawing, try_to_draw


@pytest.mark.parametrize(
    "fault", [MemoryError(), ImportError("no matplotlib"), RuntimeError("font\ncache"), OSError(30, "read-only")]
)
def test_a_fault_of_a_picture_is_one_warning(tmp_path, caplog, fault):
    def draw():
        raise fault

    assert not try_to_draw(draw, tmp_path / "a\nb.png")
    (record,) = caplog.records
    assert record.levelname == "WARNING" and type(fault).__name__ in record.getMessage()
    assert try_to_draw(lambda: None, tmp_path / "c.png") and len(caplog.records) == 1


def test_somebody_who_ends_the_program_is_obeyed(tmp_path):
    def draw():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        try_to_draw(draw, tmp_path / "a.png")


def test_labels_and_titles_are_bounded():
    assert fit_label("swim") == "swim" and len(fit_label("x" * 10_000)) <= 40 and fit_label("a\nb") == r"a\nb"
    title = fit_title("\n".join(["y" * 1000] * 100))
    assert title.count("\n") == 3 and len(title) < 500


@pytest.mark.parametrize("settings", [{}, {"text.usetex": True}, {"text.parse_math": True, "axes.formatter.use_mathtext": True}])
def test_a_dollar_is_a_dollar_whatever_the_users_matplotlibrc_says(tmp_path, settings):
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(settings), plain_drawing():
        figure = Figure()
        FigureCanvasAgg(figure)
        axis = figure.subplots()
        axis.set_xticks(range(2), [r"$\frac{$", r"$x_1$"])
        axis.set_title(r"$\frac{$")
        figure.savefig(tmp_path / "a.png")
        assert [text.get_text() for text in axis.get_xticklabels()] == [r"$\frac{$", r"$x_1$"]
