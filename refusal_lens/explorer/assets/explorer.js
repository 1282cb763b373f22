// The page follows the system between light and dark, and the arrow keys go from layer to layer.
// Prompts are listed here: texts become text nodes, and so are never read as markup.
(() => {
  const element = (tag, properties, children = []) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  };

  const labelled = (label, cell) => {
    cell.dataset.label = label;  // narrow pages show it where there is no column
    return cell;
  };

  window.refusalLensList = (table) => {
    if (!table) return;
    const cells = (row) => row.cells.map(([text, name], index) => (index
      ? labelled(table.head[index], element("td", {className: name, dir: name === "text" ? "auto" : ""}, [text]))
      : element("th", {scope: "row"}, [text])));
    const rows = table.rows.map((row) =>
      element("tr", {className: row.is_misread ? "wrong" : ""}, cells(row)));
    const head = table.head.map((name) => element("th", {scope: "col"}, [name]));
    document.getElementById("prompts").replaceChildren(rows.length
      ? element("table", {}, [element("thead", {}, [element("tr", {}, head)]), element("tbody", {}, rows)])
      : element("p", {className: "hint"}, ["None."]));
  };

  // Plotly sets every mark's style by itself, twice over: with thousands that took most of a step.
  // It is told to draw none of them (`maxdisplayed`), and still knows them all: hover, click, box
  // and lasso are its own. Here all marks of a trace that look alike are one path's markers.
  const SHAPES = {
    circle: (r) => `M${r},0A${r},${r} 0 1,1 0,${-r}A${r},${r} 0 0,1 ${r},0Z`,
    diamond: (r) => `M${1.3 * r},0L0,${1.3 * r}L${-1.3 * r},0L0,${-1.3 * r}Z`,
    "x-thin": (r) => `M${r},${r}L${-r},${-r}M${r},${-r}L${-r},${r}`,
  };

  const svg = (tag, attributes, children = []) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
    made.append(...children);
    return made;
  };

  const drawTrace = (trace, points, { xaxis, yaxis }) => {
    const { marker, uid, selected, unselected, selectedpoints } = trace;
    const chosen = selectedpoints && new Set(selectedpoints);
    const alike = new Map();
    points.forEach((point, index) => {
      const [x, y] = [xaxis.c2p(point.x), yaxis.c2p(point.y)];
      if (!Number.isFinite(x + y)) return;
      const own = { opacity: point.mo ?? marker.opacity, size: marker.size };
      const look = { ...own, ...(chosen && (chosen.has(index) ? selected : unselected)?.marker) };
      point.mrc = look.size / 2;  // hover's labels keep this far away
      const key = `${look.opacity}-${look.size}`;
      if (!alike.has(key)) alike.set(key, { ...look, places: "" });
      alike.get(key).places += `L${x.toFixed(1)},${y.toFixed(1)}`;
    });
    // What is picked out lies above what is dimmed.
    return [...alike].sort(([, a], [, b]) => a.opacity - b.opacity).flatMap(([key, look]) => {
      const id = `mark-${uid}-${key}`;
      const ink = { fill: marker.color, stroke: marker.line.color, "stroke-width": marker.line.width };
      const shape = svg("path", { d: SHAPES[marker.symbol](look.size / 2), ...ink,
        "fill-opacity": look.opacity, "stroke-opacity": look.opacity });
      return [
        svg("marker", { id, markerUnits: "userSpaceOnUse", overflow: "visible" }, [shape]),
        // The first and the last place of a path have no mark in the middle.
        svg("path", { class: "marks", "marker-mid": `url(#${id})`, fill: "none", stroke: "none",
          d: `M0,0${look.places}L0,0` }),
      ];
    });
  };

  const drawMarks = (graph) => graph.calcdata.forEach((points) => {
    const { trace } = points[0];
    const group = graph.querySelector(`.trace${trace.uid} .points`);
    if (!group || !trace.marker?.maxdisplayed) return;
    group.querySelectorAll("marker, .marks").forEach((old) => old.remove());
    group.append(...drawTrace(trace, points, graph._fullLayout._plots[trace.xaxis + trace.yaxis]));
  });

  const watchMarks = (graph) => {
    if (graph.drawsMarks || !graph.on || !graph.calcdata) return;
    graph.drawsMarks = true;
    ["afterplot", "selecting", "selected", "deselect"].forEach((event) =>
      graph.on(`plotly_${event}`, () => drawMarks(graph)));
    drawMarks(graph);
  };

  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", () => {
    const theme = dark.matches ? "dark" : "light";
    window.dash_clientside.set_props("theme", { data: theme });
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
  // Dash's sliders, dropdowns and radio buttons have no names for screen readers: they get those
  // that stand above them. Dropdowns take the focus by a field that they hide from readers.
  const name = (element) => {
    const label = element.closest(".control")?.querySelector("label, legend");
    return label ? label.textContent : "";
  };
  const set = (element, attributes) => Object.entries(attributes).forEach(([key, value]) => {
    if (element.getAttribute(key) !== value) element.setAttribute(key, value);
  });
  const mend = () => {
    document.querySelectorAll("#histogram .js-plotly-plot, #scatter .js-plotly-plot")
      .forEach(watchMarks);
    document.querySelectorAll(".control [role=slider]").forEach((thumb) =>
      set(thumb, { "aria-label": name(thumb) }));
    document.querySelectorAll(".control .dash-dropdown-focus-target").forEach((field) => {
      const value = field.closest(".control").querySelector(".dash-dropdown-value");
      set(field, { "aria-label": `${name(field)}: ${value ? value.textContent : ""}` });
      field.removeAttribute("aria-hidden");
    });
    document.querySelectorAll(".control button.dash-dropdown").forEach((button) =>
      set(button, { "aria-labelledby": `${button.id}-label ${button.id}-value` }));
    document.querySelectorAll(".control .dash-radioitems").forEach((list) => {
      set(list, { role: "radiogroup", "aria-label": name(list) });
      list.querySelectorAll("label").forEach((label) => {
        label.removeAttribute("role");
        label.removeAttribute("aria-selected");
      });
    });
  };
  let isWaiting = false;
  new MutationObserver(() => {
    if (isWaiting) return;
    isWaiting = true;
    requestAnimationFrame(() => { isWaiting = false; mend(); });
  }).observe(document.documentElement, { childList: true, subtree: true, attributes: true,
    attributeFilter: ["role", "aria-hidden", "aria-selected", "aria-valuenow",
      "aria-labelledby"] });
})();
