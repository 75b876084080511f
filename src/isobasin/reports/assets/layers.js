"use strict";

/** Draw the distances of every layer as bars and the condition numbers as lines, for every alignment of a pair. */
function drawLayers(data, state, choose) {
  const alignments = data.pairs[state.pair].layers
    .map((layers, method) => ({ layers, method, name: data.methods[method].name }))
    .filter(({ layers }) => layers);
  const keys = [html("span", "", html("span", "dot before"), "before")];
  for (const { method, name } of alignments) keys.push(html("span", "", html("span", `dot m${method}`), name));
  document.getElementById("layer-keys").replaceChildren(...keys);
  const numbers = [...new Set(alignments.flatMap(({ layers }) => layers.map(({ layer }) => layer)))].sort((a, b) => a - b);
  const at = (layers, number) => layers.find(({ layer }) => layer === number);

  drawPanel("distances", numbers, state, choose, {
    values: alignments.flatMap(({ layers }) => layers.flatMap(({ before, after }) => [before, after])),
    log: false,
    row: (number) => distanceRows(alignments, number, at),
    paint: (drawing, number, x, band) => {
      const bars = [["before", at(alignments[0].layers, number)?.before]];
      for (const { layers, method } of alignments) bars.push([`m${method}`, at(layers, number)?.after]);
      const width = Math.min(16, (0.78 * band) / bars.length);
      bars.forEach(([name, value], i) => {
        if (value === null || value === undefined) return;
        const y = drawing.y(value);
        const start = x - (width * bars.length) / 2 + i * width;
        const size = { x: start, y, width: Math.max(width - 1, 1), height: Math.max(drawing.bottom - y, 0) };
        drawing.root.append(svg("rect", { class: `bar ${name}`, ...size, rx: Math.min(2, width / 4) }));
      });
    },
  });
  const conditions = alignments.flatMap(({ layers }) => layers.map(({ condition }) => condition));
  drawPanel("conditions", numbers, state, choose, {
    values: conditions,
    log: conditions.every((value) => value === null || value > 0),
    row: (number) => conditionRows(alignments, number, at),
    lines: alignments.map(({ layers, method }) => ({
      method,
      dash: data.methods[method].dash,
      values: numbers.map((number) => at(layers, number)?.condition ?? null),
    })),
  });
}

function distanceRows(alignments, number, at) {
  const first = at(alignments[0].layers, number);
  const rows = first ? [["before", "before", shown(first.before)]] : [];
  for (const { layers, method, name } of alignments) {
    const layer = at(layers, number);
    if (layer) rows.push([`m${method}`, name, shown(layer.after)]);
  }
  return rows;
}

function conditionRows(alignments, number, at) {
  const rows = [];
  for (const { layers, method, name } of alignments) {
    const layer = at(layers, number);
    const steps = layer?.iterations ? `, ${layer.iterations} steps` : "";
    if (layer) rows.push([`m${method}`, `${name} (${layer.status}${steps})`, shown(layer.condition)]);
  }
  return rows;
}

/** One chart with a band for every layer. */
function drawPanel(id, numbers, state, choose, { values, log, row, paint, lines = [] }) {
  const host = document.getElementById(id);
  const height = 260;
  const [top, bottom] = [10, height - 42];
  const place = scale(values.filter((value) => value !== null), log, top, bottom);
  const drawing = { ...frame(host, height, place, "", false), y: place.y, bottom };
  const { root, left, width } = drawing;
  const band = (width - left) / numbers.length;
  const x = (i) => left + (i + 0.5) * band;
  const chosen = svg("rect", { class: "chosen-layer", y: top, width: band, height: bottom - top, rx: 3 });
  const index = numbers.indexOf(state.layer);
  if (index >= 0) {
    chosen.setAttribute("x", left + index * band);
    root.prepend(chosen);
  }
  numbers.forEach((number, i) => {
    if (i % Math.ceil(26 / band) === 0) root.append(svg("text", { x: x(i), y: bottom + 18, "text-anchor": "middle" }, String(number)));
    paint?.(drawing, number, x(i), band);
  });
  for (const line of lines) {
    const path = svg("path", { class: `trail m${line.method}`, d: pathOf(numbers.map((_, i) => i), line.values, x, place.y) });
    if (line.dash.length) path.setAttribute("stroke-dasharray", line.dash.map((length) => 2 * length).join(" "));
    root.append(path);
    line.values.forEach((value, i) => {
      if (value !== null) root.append(svg("circle", { class: `spot m${line.method}`, cx: x(i), cy: place.y(value), r: 3.2 }));
    });
  }
  root.append(svg("line", { class: "axis", x1: left, x2: width, y1: bottom, y2: bottom }));
  root.append(svg("text", { class: "label", x: (left + width) / 2, y: height - 4, "text-anchor": "middle" }, "layer"));
  listenToLayers(drawing, numbers, Math.max(index, 0), x, band, row, choose);
}

/** Show a layer's numbers under the pointer, or moved to with the arrow keys; a click or Enter chooses it. */
function listenToLayers(drawing, numbers, start, x, band, row, choose) {
  const { root } = drawing;
  let index = start;
  const at = (i) => {
    index = i;
    const rows = row(numbers[i]);
    placeTip(drawing, x(i), 0, html("p", "", `layer ${numbers[i]}`), ...rows.map((one) => tipRow(...one)));
    root.setAttribute("aria-valuenow", numbers[i]);
    root.setAttribute("aria-valuetext", [`layer ${numbers[i]}`, ...rows.map(([, name, value]) => `${name} ${value}`)].join(", "));
  };
  const follow = (event) => at(Math.max(0, Math.min(numbers.length - 1, Math.floor((position(drawing, event)[0] - drawing.left) / band))));
  const leave = () => (drawing.tip.hidden = true);
  const values = { role: "slider", "aria-valuemin": numbers[0], "aria-valuemax": numbers.at(-1), "aria-valuenow": numbers[start] };
  for (const [name, value] of Object.entries(values)) root.setAttribute(name, value);
  root.setAttribute("aria-label", "Layers: arrow keys move, Enter chooses");
  root.addEventListener("pointermove", follow);
  root.addEventListener("pointerleave", leave);
  root.addEventListener("blur", leave);
  root.addEventListener("focus", () => root.matches(":focus-visible") && at(index));
  root.addEventListener("click", (event) => {
    follow(event);
    choose(numbers[index]);
  });
  root.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      choose(numbers[index]);
      return;
    }
    const to = stepped(event, index, numbers.length);
    if (to !== null) at(to);
  });
}
