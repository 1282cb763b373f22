"""Categories and misread prompts keep their rows, colours and texts."""

import numpy as np
import planted

from refusal_lens import plots
from refusal_lens.plots.style import CLASSES


def test_categories_have_a_row_each_in_their_class_s_colour():
    table = planted.categories(8)
    own = table[(table["layer"] == 5) & (table["position"] == "last")]
    figure = plots.category_breakdown(own)
    for style in CLASSES:
        rows = own[own["is_harmful"] == style.is_harmful].sort_values("mean_cosine")
        marks, bars = planted.named(figure, style.name)
        np.testing.assert_allclose(marks.x, rows["mean_cosine"])
        np.testing.assert_allclose(bars.x, 100 * rows["share_called_harmful"])
        assert marks.marker.color == bars.marker.color == style.colour
        assert marks.y == bars.y
    assert "resid_post 5 · position last" in figure.layout.title.text


def test_categories_of_both_classes_with_one_name_keep_their_rows():
    table = planted.categories(1)
    own = table[table["position"] == "last"].assign(category="same", n=3)
    marks = [planted.named(plots.category_breakdown(own), style.name)[0] for style in CLASSES]
    assert not set(marks[0].y) & set(marks[1].y)


def test_misread_prompts_are_the_farthest_first_and_escaped():
    table = planted.misread(8, 40)
    figure = plots.misread_prompts(table)
    shown = sorted((x for bars in figure.data for x in bars.x), reverse=True)
    np.testing.assert_allclose(shown, sorted(table["margin"].abs(), reverse=True)[:30])
    assert figure.layout.title.subtitle.text == "the 30 farthest of 40"
    assert figure.layout.yaxis.categoryarray[-1] == "harmless-039"
    for style, bars in zip(CLASSES, figure.data, strict=True):
        assert bars.marker.color == style.colour
        assert all(name.startswith(style.name + "-") for name in bars.y)
        assert "this &amp;<br>that &lt;b&gt;" in bars.hovertext[0]
    assert "<b>." not in figure.to_json()


def test_no_misread_prompt_says_so():
    figure = plots.misread_prompts(planted.misread(8, 0))
    said = [note.text for note in figure.layout.annotations]
    assert said == ["every prompt is on its own side of the threshold"]
