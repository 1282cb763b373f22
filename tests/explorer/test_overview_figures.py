"""Cells of the overview know their places."""

from refusal_lens.explorer import overview_figures
from refusal_lens.explorer.moves import move
from refusal_lens.explorer.scene import Scene


def moved(view, runs, trigger, value, **others):
    return move(view, [trigger], {trigger: value, **others}, runs)


def test_cells_know_their_places(runs, view):
    scores = Scene(runs[view.run], view).projected.scores
    cells = overview_figures.place_heatmap(scores, "accuracy").data[0]
    for _, row in scores.iterrows():
        place = row["hook_point"], row["position"]
        shape = overview_figures.heatmap_highlight(scores, *place)[0]
        x, y = int(shape["x0"] + 0.5), int(shape["y0"] + 0.5)
        assert cells.z[y][x] == row["accuracy"]
        click = {"points": [{"x": cells.x[x], "y": cells.y[y]}]}
        there = moved(view, runs, "heatmap.clickData", click)
        assert (there.hook_point, there.position) == place
