"""How long the explorer takes from a step of its slider to the new figures, in a real browser.

    python tests/benchmarks/explorer.py

A planted run of 48 layers, 2 positions and 2,000 prompts. Timed in the page, from the moment the
layer is set until a figure says that it is drawn, and until all is painted (`seen`); beside it what
of that the server took. Prints a Markdown table: medians, and the slowest.
"""

import argparse
import statistics
import sys
import tempfile
import threading
from pathlib import Path

from playwright.sync_api import sync_playwright
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[1]))
from browser import ARGUMENTS, find_chromium
from explored_run import make_run

from refusal_lens.explorer import build_app, open_server

FIGURES = ("histogram", "ridgeline")

STEP = """([layer, figures]) => new Promise((done) => {
    const began = performance.now(), took = {};
    performance.clearResourceTimings();
    for (const id of figures) {
        const graph = document.querySelector(`#${id} .js-plotly-plot`);
        const note = () => {
            graph.removeListener('plotly_afterplot', note);
            took[id] = performance.now() - began;
            if (Object.keys(took).length < figures.length) return;
            const answers = performance.getEntriesByType('resource')
                .filter((entry) => entry.name.includes('update'));
            took.server = Math.max(...answers.map((a) => a.responseStart - a.requestStart));
            // Two frames on, what was drawn has been painted.
            requestAnimationFrame(() => requestAnimationFrame(() => {
                took.seen = performance.now() - began;
                done(took);
            }));
        };
        graph.on('plotly_afterplot', note);
    }
    dash_clientside.set_props('layer', {value: layer});
})"""


def main() -> None:
    """Step through the layers and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--prompts", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    console = Console(soft_wrap=True)
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(
            Path(folder) / "run", n=options.prompts // 2, n_layers=options.layers, d_model=64
        )
        taken = measure(run.path, options)
    console.print(f"{options.layers} layers x 2 positions x {options.prompts:,} prompts\n")
    console.print("| | median, ms | slowest, ms |\n|---|---|---|")
    for name, times in taken.items():
        console.print(f"| {name} | {statistics.median(times):.0f} | {max(times):.0f} |")


def measure(run: Path, options: argparse.Namespace) -> dict[str, list[float]]:
    """Return milliseconds by figure, and of the server alone."""
    taken: dict[str, list[float]] = {name: [] for name in (*FIGURES, "seen", "server")}
    with open_server(build_app([run]), port=0) as server, sync_playwright() as playwright:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=list(ARGUMENTS))
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.goto(f"http://127.0.0.1:{server.port}/")
        page.wait_for_timeout(8000)
        for step in range(options.steps + 1):
            took = page.evaluate(STEP, [(step * 7 + 1) % options.layers, list(FIGURES)])
            page.wait_for_timeout(1500)  # scatter and list follow when the slider is still
            if step:  # the first pays for what a page does once
                for name, milliseconds in took.items():
                    taken[name].append(milliseconds)
        browser.close()
        server.shutdown()
    return taken


if __name__ == "__main__":
    main()
