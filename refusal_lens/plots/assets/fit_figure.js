// What a narrow window takes, on a figure's own page and in a report: smaller letters, one menu below
// the other, numbers in cells only where these have 30 pixels, fewer words beside bars, and panels of
// square cells, which are as high as they are wide, without the room that they do not fill.
const fitFigure = (graph) => {
  const isNarrow = graph.clientWidth < 500;
  const menus = graph.layout.updatemenus ?? [], sliders = graph.layout.sliders ?? [];
  graph.drawnAs ??= {
    numbers: graph.data.map((trace) => trace.texttemplate),
    texts: graph.data.map((trace) => trace.textposition === "outside" && trace.text),
    pads: [...menus, ...sliders].map((control) => control.pad?.t ?? 0),
    titles: (graph.layout.annotations ?? []).map((note) => note.font?.size),
    height: graph.layout.height,
  };
  for (const [index, trace] of graph.data.entries()) {
    const numbers = graph.drawnAs.numbers[index];
    if (trace.type !== "heatmap" || !numbers) continue;
    const width = graph._fullLayout[(trace.xaxis ?? "x").replace("x", "xaxis")]._length;
    const text = width / trace.x.length < 30 ? "" : numbers;
    if (trace.texttemplate !== text) Plotly.restyle(graph, {texttemplate: text}, [index]);
  }
  if (graph.isNarrow === isNarrow) return;
  graph.isNarrow = isNarrow;
  const firstWords = (text) => (text.length > 24 ? `${text.slice(0, 24).replace(/ \S*$/, "")}…` : text);
  for (const [index, texts] of graph.drawnAs.texts.entries()) {
    if (Array.isArray(texts)) Plotly.restyle(graph, {text: [isNarrow ? texts.map(firstWords) : texts]}, [index]);
  }
  const changes = {"font.size": isNarrow ? 10 : 12};
  if (menus.length > 1 && menus.every((menu) => menu.visible !== false)) {
    [...menus, ...sliders].forEach((_, index) => {
      const kind = index < menus.length ? `updatemenus[${index}]` : `sliders[${index - menus.length}]`;
      const above = isNarrow ? 40 * Math.min(index, menus.length - 1) : 0;
      changes[`${kind}.pad.t`] = graph.drawnAs.pads[index] + above;
    });
  }
  graph.drawnAs.titles.forEach((size, index) => {
    if (size > 12) changes[`annotations[${index}].font.size`] = isNarrow ? 11 : size;
  });
  const isSquare = Object.values(graph.layout).some((part) => part?.scaleanchor);
  if (isSquare && graph.drawnAs.height) {
    const most = isNarrow ? 180 + 0.62 * graph.clientWidth : Infinity;
    changes.height = Math.min(graph.drawnAs.height, most);
    for (const box of [graph, graph.parentElement]) {
      if (box.style.height) box.style.height = `${changes.height}px`;
      box.style.minHeight = "";
    }
  }
  return Plotly.relayout(graph, changes);
};
