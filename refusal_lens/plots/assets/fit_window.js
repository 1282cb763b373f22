// Plotly cuts a title that is wider than the window; a letter of 15 pixels is about 8 wide.
const graph = document.getElementById("{plot_id}");
const title = graph.layout.title?.text ?? "", top = graph.layout.margin?.t ?? 100;
const above = graph.layout.title?.pad?.t ?? 0;
const wrap = () => {
  const most = Math.max(20, Math.floor((innerWidth - 30) / 8)), lines = [""];
  for (const word of title.split(" ")) {
    const last = lines.at(-1);
    if (last && (last + word).length >= most) lines.push(word);
    else lines[lines.length - 1] = last ? `${last} ${word}` : word;
  }
  const text = lines.join("<br>");
  if (title && !title.includes("<") && graph.layout.title.text !== text) {
    const more = 20 * (lines.length - 1);
    const room = {"title.pad.t": above + more, "margin.t": top + more};
    Plotly.relayout(graph, {"title.text": text, ...room});
  }
};
for (const fit of [wrap, () => fitFigure(graph)]) {
  addEventListener("resize", fit);
  fit();
}
