"use strict";

/** Draw what became of every block, by layer and for every alignment of a pair: of attention, and of units if they moved. */
function drawLayers(data, state, choose) {
  const { layers, units } = data.pairs[state.pair];
  const keys = [html("span", "", html("span", "dot before"), "before")];
  for (const { method, name } of alignmentsOf(data, layers)) keys.push(html("span", "", html("span", `dot m${method}`), name));
  document.getElementById("layer-keys").replaceChildren(...keys);

  const heads = blocksOf(data, layers);
  drawDistances("distances", heads, state, choose);
  const conditions = heads.alignments.flatMap(({ layers }) => layers.map(({ condition }) => condition));
  drawPanel("conditions", heads, state, choose, {
    values: conditions,
    log: conditions.every((value) => value === null || value > 0),
    row: conditionRow,
    lines: heads.alignments.map(({ layers, method }) => ({
      method,
      dash: data.methods[method].dash,
      values: heads.numbers.map((number) => at(layers, number)?.condition ?? null),
    })),
  });

  const moved = blocksOf(data, units);
  document.getElementById("units").hidden = !moved.numbers.length;
  if (!moved.numbers.length) return;
  drawDistances("unit-distances", moved, state, choose);
  drawPanel("unit-moves", moved, state, choose, {
    values: [0, 1],
    percent: true,
    row: (layer) => [layer.status, shown(layer.moved, true)],
    bars: (number) => moved.alignments.map(({ layers, method }) => [`m${method}`, at(layers, number)?.moved]),
  });
}

/** The alignments of a pair that say something of blocks of a kind. */
function alignmentsOf(data, blocks) {
  return blocks
    .map((layers, method) => ({ layers, method, name: data.methods[method].name }))
    .filter(({ layers }) => layers?.length);
}

/** Those, and the layers that any of them has. */
function blocksOf(data, blocks) {
  const alignments = alignmentsOf(data, blocks);
  const numbers = [...new Set(alignments.flatMap(({ layers }) => layers.map(({ layer }) => layer)))];
  return { alignments, numbers: numbers.sort((a, b) => a - b) };
}

function at(layers, number) {
  return layers.find(({ layer }) => layer === number);
}

/** How far blocks are apart: a bar before any alignment, and one after each. */
function drawDistances(id, blocks, state, choose) {
  const { alignments } = blocks;
  const before = (number) => at(alignments[0].layers, number)?.before;
  drawPanel(id, blocks, state, choose, {
    values: [0, ...alignments.flatMap(({ layers }) => layers.flatMap(({ before, after }) => [before, after]))],
    first: (number) => [["before", "before", shown(before(number))]],
    row: (layer) => ["", shown(layer.after)],
    bars: (number) => [
      ["before", before(number)],
      ...alignments.map(({ layers, method }) => [`m${method}`, at(layers, number)?.after]),
    ],
  });
}

function conditionRow({ status, iterations, condition }) {
  return [`${status}${iterations ? `, ${iterations} steps` : ""}`, shown(condition)];
}

/** Bars side by side in a layer's band, all of them from zero. */
function paintBars(drawing, bars, x, band) {
  const width = Math.min(16, (0.78 * band) / bars.length);
  bars.forEach(([name, value], i) => {
    if (value === null || value === undefined) return;
    const y = drawing.y(value);
    const start = x - (width * bars.length) / 2 + i * width;
    const size = { x: start, y, width: Math.max(width - 1, 1), height: Math.max(drawing.bottom - y, 0) };
    drawing.root.append(svg("rect", { class: `bar ${name}`, ...size, rx: Math.min(2, width / 4) }));
  });
}

/** One chart with a band for every layer; `row` says what an alignment did to one, and how, for the tooltip. */
function drawPanel(id, { alignments, numbers }, state, choose, { values, row, first, bars, log = false, percent = false, lines = [] }) {
  const host = document.getElementById(id);
  const height = 260;
  const [top, bottom] = [10, height - 42];
  const place = scale(values.filter((value) => value !== null), log, top, bottom, percent);
  const drawing = { ...frame(host, height, place, "", percent), y: place.y, bottom };
  const { root, left, width } = drawing;
  const band = (width - left) / numbers.length;
  const x = (i) => left + (i + 0.5) * band;
  const chosen = svg("rect", { class: "chosen-layer", y: top, width: band, height: bottom - top, rx: 3 });
  const index = numbers.findIndex((number) => Number(number) === state.layer);
  if (index >= 0) {
    chosen.setAttribute("x", left + index * band);
    root.prepend(chosen);
  }
  numbers.forEach((number, i) => {
    if (i % Math.ceil(26 / band) === 0) root.append(svg("text", { x: x(i), y: bottom + 18, "text-anchor": "middle" }, String(number)));
    if (bars) paintBars(drawing, bars(number), x(i), band);
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
  const rows = (number) => [
    ...(first?.(number) ?? []),
    ...alignments.flatMap(({ layers, method, name }) => {
      const layer = at(layers, number);
      if (!layer) return [];
      const [how, value] = row(layer);
      return [[`m${method}`, how ? `${name} (${how})` : name, value]];
    }),
  ];
  listenToLayers(drawing, numbers, Math.max(index, 0), x, band, rows, choose);
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
    choose(Math.floor(numbers[index]));
  });
  root.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      choose(Math.floor(numbers[index]));
      return;
    }
    const to = stepped(event, index, numbers.length);
    if (to !== null) at(to);
  });
}
