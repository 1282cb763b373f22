// The page follows the system between light and dark, and the arrow keys go from layer to layer.
// Prompts are listed here: texts become text nodes, and so are never read as markup.
(() => {
  const element = (tag, properties, children = []) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  };

  window.refusalLensList = (table) => {
    if (!table) return;
    const cells = (row) => row.cells.map(([text, name], index) => (index
      ? element("td", {className: name, dir: name === "text" ? "auto" : ""}, [text])
      : element("th", {scope: "row"}, [text])));
    const rows = table.rows.map((row) =>
      element("tr", {className: row.is_misread ? "wrong" : ""}, cells(row)));
    const head = table.head.map((name) => element("th", {scope: "col"}, [name]));
    document.getElementById("prompts").replaceChildren(rows.length
      ? element("table", {}, [element("thead", {}, [element("tr", {}, head)]), element("tbody", {}, rows)])
      : element("p", {className: "hint"}, ["None."]));
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
