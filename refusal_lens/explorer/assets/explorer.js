// The page follows the system between light and dark, and the arrow keys go from layer to layer.
(() => {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", () => {
    const template = dark.matches ? "plotly_dark" : "plotly_white";
    window.dash_clientside.set_props("template", { data: template });
  });

  // Where a control has the focus, its own keys count.
  const busy = "input, textarea, select, [role=slider], [role=listbox], [role=option], " +
    "[role=dialog], [contenteditable], .dash-dropdown, .table";

  document.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    if (event.target.closest && event.target.closest(busy)) return;
    const thumb = document.querySelector("#layer [role=slider]");
    if (!thumb || thumb.hasAttribute("data-disabled")) return;
    const [now, low, high] = ["now", "min", "max"].map((name) =>
      Number(thumb.getAttribute(`aria-value${name}`)));
    const next = Math.min(high, Math.max(low, now + step));
    if (next !== now) window.dash_clientside.set_props("layer", { value: next });
    event.preventDefault();
  });
})();
