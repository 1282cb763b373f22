"use strict";
(() => {
  const PRINT_WIDTH = 690; // CSS pixels of an A4 page between its margins
  // "Share chart" would send the figure, and so the prompts in it, to plotly's own site.
  const CONFIG = {
    responsive: true,
    displaylogo: false,
    showSendToCloud: false,
    plotlyServerURL: "",
    modeBarButtonsToRemove: ["sendChartToCloud"],
  };
  const themes = readJson("themes");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const drawn = new Map(); // plot -> promise of all that is to be done to it
  let isPrinting = false;

  function readJson(id) {
    return JSON.parse(document.getElementById(id).textContent);
  }

  function isDark() {
    return dark.matches && !isPrinting;
  }

  function theme() {
    return themes[isDark() ? "dark" : "light"];
  }

  function element(tag, properties = {}, children = []) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }

  // Labels of figures may hold markup and entities; elements of ours take plain text.
  function plain(text) {
    return new DOMParser().parseFromString(String(text), "text/html").body.textContent;
  }

  // --- figures: drawn when they come near the window, or before printing ---

  function draw(plot) {
    if (drawn.has(plot)) return;
    const figure = readJson(`data-${plot.dataset.name}`);
    const isShown = hideOwnControls(figure.layout);
    const done = dress(plot, figure.data, figure.layout).then(() => {
      showControls(plot, isShown);
      plot.dataset.isDrawn = "yes";
    });
    drawn.set(plot, done);
  }

  // Draw as theme and medium want it; what was chosen in the figure is in data and layout.
  function dress(plot, data, layout) {
    const { width, ...fluid } = layout;
    const size = isPrinting ? { width: PRINT_WIDTH, autosize: false } : { autosize: true };
    return Plotly.newPlot(plot, data, { ...fluid, ...size, template: theme() }, {
      ...CONFIG,
      toImageButtonOptions: { format: "svg", filename: plot.dataset.name },
    }).then(() => fitFigure(plot));
  }

  function after(plot, change) {
    drawn.set(plot, drawn.get(plot).then(change));
  }

  // --- a figure's sliders and menus, as elements that keyboards and thumbs can reach ---

  const KINDS = ["sliders", "updatemenus"];

  function hideOwnControls(layout) {
    const isShown = {};
    for (const kind of KINDS) {
      isShown[kind] = (layout[kind] ?? []).map((control) => control.visible ?? true);
      layout[kind] = (layout[kind] ?? []).map((control) => ({ ...control, visible: false }));
    }
    return isShown;
  }

  function showControls(plot, isShown) {
    const place = plot.closest("figure").querySelector(".controls");
    const made = [];
    for (const kind of KINDS) {
      plot.layout[kind].forEach((control, index) => {
        const steps = control[kind === "sliders" ? "steps" : "buttons"];
        if (!isShown[kind][index] || !steps?.length) return;
        const make = kind === "sliders" ? makeSlider : makeMenu;
        made.push(make(control, steps, (step) => act(plot, control, steps[step], isShown)));
      });
    }
    place.replaceChildren(...made);
  }

  function makeSlider(control, steps, choose) {
    const prefix = plain(control.currentvalue?.prefix ?? "").trim() || "step";
    const input = element("input", { type: "range", min: 0, max: steps.length - 1 });
    const output = element("output");
    const show = () => {
      output.textContent = plain(steps[input.valueAsNumber].label);
      input.setAttribute("aria-valuetext", `${prefix} ${output.textContent}`);
    };
    input.value = control.active ?? 0;
    input.addEventListener("input", () => {
      control.active = input.valueAsNumber;
      show();
      choose(control.active);
    });
    show();
    const label = element("label", { className: "control wide" }, [prefix, input, output]);
    return label;
  }

  function makeMenu(control, buttons, choose) {
    const names = buttons.map((button) => plain(button.label));
    const first = names[0].split(" ")[0];
    const isShared = names.every((name) => name.startsWith(`${first} `));
    const select = element("select", {}, names.map((name) =>
      element("option", { textContent: isShared ? name.slice(first.length + 1) : name })));
    select.selectedIndex = control.active ?? 0;
    select.addEventListener("change", () => {
      control.active = select.selectedIndex;
      choose(control.active);
    });
    return element("label", { className: "control" }, [isShared ? first.replace(/,$/, "") : "show", select]);
  }

  // The latest wish counts: steps passed over while the figure is busy are not drawn.
  const wishes = new Map(); // control -> step

  function act(plot, control, step, isShown) {
    wishes.set(control, step);
    after(plot, async () => {
      if (wishes.get(control) !== step || step.method === "skip") return;
      const args = step.args.map((part) => divert(part, isShown));
      await Plotly[step.method](plot, ...args);
      if (args.some((part, index) => part !== step.args[index])) showControls(plot, isShown);
    });
  }

  // A step that shows or hides one of the figure's own controls means ours.
  function divert(part, isShown) {
    if (!part || typeof part !== "object" || Array.isArray(part)) return part;
    const kept = {};
    for (const [key, value] of Object.entries(part)) {
      const named = key.match(/^(sliders|updatemenus)\[(\d+)\]\.visible$/);
      if (named) isShown[named[1]][Number(named[2])] = value;
      else if (KINDS.includes(key)) {
        isShown[key] = value.map((control) => control.visible ?? true);
        kept[key] = value.map((control) => ({ ...control, visible: false }));
      } else kept[key] = value;
    }
    const isSame = Object.keys(part).every((key) => kept[key] === part[key]);
    return isSame ? part : kept;
  }

  // --- tables ---

  const collator = new Intl.Collator(undefined, { numeric: true });

  function keyOf(cell) {
    return "number" in cell.dataset ? Number(cell.dataset.number) : cell.textContent;
  }

  function compare(one, other) {
    return typeof one === "number" && typeof other === "number"
      ? one - other
      : collator.compare(String(one), String(other));
  }

  function sort(table, column) {
    const heads = [...table.tHead.rows[0].cells];
    const isDown = heads[column].getAttribute("aria-sort") === "ascending";
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[column].setAttribute("aria-sort", isDown ? "descending" : "ascending");
    const rows = [...table.tBodies[0].rows].map((row) => [keyOf(row.cells[column]), row]);
    const isMissing = (key) => Number.isNaN(key) || key === "";
    rows.sort(([one], [other]) => {
      // What was not measured stays below, whatever the order.
      if (isMissing(one) || isMissing(other)) return isMissing(one) - isMissing(other);
      return isDown ? compare(other, one) : compare(one, other);
    });
    table.tBodies[0].append(...rows.map(([, row]) => row));
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((head, column) =>
      head.querySelector("button").addEventListener("click", () => sort(table, column)));
  }

  for (const box of document.querySelectorAll("p.filter")) {
    const rows = [...box.parentElement.querySelectorAll("tbody tr")];
    const [input, status] = [box.querySelector("input"), box.querySelector("[role=status]")];
    box.hidden = false;
    input.addEventListener("input", () => {
      const wanted = input.value.toLowerCase();
      for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
      const n = rows.filter((row) => !row.hidden).length;
      status.textContent = wanted ? `${n} of ${rows.length} rows` : "";
    });
  }

  // --- the page: what is near, what is read, what is printed ---

  const plots = [...document.querySelectorAll(".plot")];
  const near = new IntersectionObserver(
    (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => {
      near.unobserve(entry.target);
      draw(entry.target);
    }),
    { rootMargin: "500px" },
  );
  plots.forEach((plot) => near.observe(plot));

  const links = new Map(
    [...document.querySelectorAll(".contents a")].map((link) => [link.hash.slice(1), link]),
  );
  const reading = new IntersectionObserver(
    (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => {
      links.forEach((link) => link.removeAttribute("aria-current"));
      links.get(entry.target.id).setAttribute("aria-current", "true");
    }),
    { rootMargin: "-20% 0px -75% 0px" },
  );
  links.forEach((_, id) => reading.observe(document.getElementById(id)));

  // A link to a folded figure unfolds it.
  function unfold() {
    const details = document.getElementById(location.hash.slice(1))?.closest("details.folded");
    if (details && !details.open) {
      details.open = true;
      document.getElementById(location.hash.slice(1)).scrollIntoView();
    }
  }
  addEventListener("hashchange", unfold);
  unfold();

  function redress() {
    drawn.forEach((_, plot) => after(plot, () => dress(plot, plot.data, plot.layout)));
  }

  dark.addEventListener("change", redress);

  let closed = [];
  addEventListener("beforeprint", () => {
    isPrinting = true;
    closed = [...document.querySelectorAll("details.table:not([open]), details.folded:not([open])")];
    closed.forEach((details) => { details.open = true; });
    // Printing does not wait: what is drawn already is changed at once.
    drawn.forEach((_, plot) => plot.layout && dress(plot, plot.data, plot.layout));
    plots.forEach(draw);
  });
  addEventListener("afterprint", () => {
    isPrinting = false;
    closed.forEach((details) => { details.open = false; });
    redress();
  });
})();
