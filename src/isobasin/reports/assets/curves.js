"use strict";

/** Draw one quantity of one pair along the line, for every method. `read` is told the values at a t, or null. */
function drawCurves(data, state, read) {
  const host = document.getElementById("curves");
  const quantity = data.quantities[state.quantity];
  const lines = data.pairs[state.pair].lines.map((line) => ({
    ...line,
    values: line.values[quantity.id] ?? [],
    errors: quantity.id === "loss" && line.errors.some((error) => error !== null) ? line.errors : null,
  }));
  const visible = lines.filter((line, i) => !state.hidden.has(i) && line.values.length);
  const values = visible.flatMap((line) => [...line.values, ...above(line)]).filter((value) => value !== null);
  const possible = values.length > 0 && Math.min(...values) > 0 && !quantity.percent;
  const log = state.log && possible;
  state.logPossible = possible;

  const height = Math.round(Math.max(280, Math.min(440, 0.56 * host.clientWidth)));
  const [top, bottom] = [26, height - 44];
  const place = scale(values, log, top, bottom, quantity.percent);
  const drawing = frame(host, height, place, "", quantity.percent);
  const { root, left, width } = drawing;
  const right = width - 10;
  const x = (t) => left + t * (right - left);
  root.append(svg("text", { class: "label", x: left, y: 12 }, quantity.name));
  root.append(svg("line", { class: "axis", x1: left, x2: width, y1: bottom, y2: bottom }));
  for (const t of [0, 0.25, 0.5, 0.75, 1]) {
    root.append(svg("text", { x: x(t), y: bottom + 18, "text-anchor": "middle" }, String(t)));
  }
  const { a, b } = data.pairs[state.pair];
  const letters = Math.min(32, 2 * Math.floor((right - left) / 32 - 2));
  root.append(svg("text", { class: "label", x: left, y: height - 6 }, `A: ${clipped(a, letters)}`));
  root.append(svg("text", { class: "label", x: x(0.5), y: height - 6, "text-anchor": "middle" }, "t"));
  root.append(svg("text", { class: "label", x: right, y: height - 6, "text-anchor": "end" }, `B: ${clipped(b, letters)}`));

  const chord = quantity.chord ? chordOf(visible) : null;
  if (chord) root.append(svg("path", { class: "chord", d: pathOf(data.t, data.t.map(chord), x, place.y) }));
  const groups = lines.map((line, i) => {
    const group = curveOf(line, data.methods[i], x, place, top);
    group.setAttribute("class", `curve m${i}${state.hidden.has(i) ? " hidden" : ""}`);
    root.append(group);
    return group;
  });
  const marks = svg("g");
  root.append(marks);
  listen(data, state, { ...drawing, read, marks, lines, groups, x, y: place.y, chord, top, bottom, right });
  const bands = visible.some((line) => line.errors);
  return { chord: chord !== null, bands, show: (i) => emphasise(i, { marks, lines, groups, x, y: place.y, chord, quantity, width }) };
}

/** The straight line between the losses of the ends: the same for all methods, up to rounding. */
function chordOf(lines) {
  const line = lines.find(({ t, values }) => t[0] === 0 && t.at(-1) === 1 && values[0] !== null && values.at(-1) !== null);
  return line ? (t) => (1 - t) * line.values[0] + t * line.values.at(-1) : null;
}

/** A path through the points; it is broken where a value isn't finite. */
function pathOf(t, values, x, y) {
  let pen = "M";
  return t
    .map((at, i) => {
      if ((values[i] ?? null) === null) {
        pen = "M";
        return "";
      }
      const part = `${pen}${x(at).toFixed(1)} ${y(values[i]).toFixed(1)}`;
      pen = "L";
      return part;
    })
    .join("");
}

/** A curve's values with their standard errors added. */
function above({ values, errors }) {
  return errors ? values.map((value, i) => (value === null || errors[i] === null ? null : value + errors[i])) : [];
}

/** The area within one standard error of a curve, in a piece for every two neighbours that are known. */
function bandOf({ t, values, errors }, x, place) {
  const edge = (i, sign) => `${x(t[i]).toFixed(1)} ${place.y(Math.max(values[i] + sign * errors[i], place.low)).toFixed(1)}`;
  const known = (i) => values[i] !== null && errors[i] !== null;
  return t
    .map((_, i) => (i && known(i - 1) && known(i) ? `M${edge(i - 1, 1)}L${edge(i, 1)}L${edge(i, -1)}L${edge(i - 1, -1)}Z` : ""))
    .join("");
}

/** One curve: its line, its points, and crosses at the top where the value isn't finite. */
function curveOf(line, method, x, place, top) {
  const group = svg("g");
  if (line.errors) group.append(svg("path", { class: "band", d: bandOf(line, x, place) }));
  const path = svg("path", { class: "line", d: pathOf(line.t, line.values, x, place.y) });
  if (method.dash.length) path.setAttribute("stroke-dasharray", method.dash.map((length) => 2.4 * length).join(" "));
  group.append(path);
  line.t.slice(0, line.values.length).forEach((t, i) => {
    if (line.values[i] === null) {
      const [cx, cy] = [x(t), top];
      group.append(svg("path", { class: "lost", d: `M${cx - 4} ${cy - 4}l8 8m0-8l-8 8` }));
    } else if (!method.dash.length || line.barrier === null) {
      group.append(svg("circle", { cx: x(t), cy: place.y(line.values[i]), r: 2.6 }));
    }
  });
  return group;
}

/** Show the values at a t in the legend, under the pointer or moved to with the arrow keys. */
function listen(data, state, drawing) {
  const { root, marks, lines, x, y, read } = drawing;
  const quantity = data.quantities[state.quantity];
  let index = Math.floor(data.t.length / 2);
  const at = (i) => {
    index = i;
    const t = data.t[i];
    marks.replaceChildren(svg("line", { class: "guide", x1: x(t), x2: x(t), y1: drawing.top, y2: drawing.bottom }));
    const texts = lines.map((line, method) => {
      const found = line.t.indexOf(t);
      if (found < 0 || !line.values.length || state.hidden.has(method)) return "";
      const value = line.values[found];
      if (value !== null) marks.append(svg("circle", { class: `ring m${method}`, cx: x(t), cy: y(value), r: 4.5 }));
      return shown(value, quantity.percent);
    });
    const where = `t = ${shown(t)}`;
    read(where, texts);
    const said = texts.flatMap((text, method) => (text ? [`${data.methods[method].name} ${text}`] : []));
    root.setAttribute("aria-valuenow", t);
    root.setAttribute("aria-valuetext", [where, ...said].join(", "));
  };
  const leave = () => {
    marks.replaceChildren();
    read(null);
  };
  const values = { role: "slider", "aria-valuemin": 0, "aria-valuemax": 1, "aria-valuenow": data.t[index] };
  for (const [name, value] of Object.entries(values)) root.setAttribute(name, value);
  root.setAttribute("aria-label", `${quantity.name} along the line: arrow keys move t`);
  const nearest = (event) => {
    const t = (position(drawing, event)[0] - drawing.left) / (drawing.right - drawing.left);
    at(data.t.reduce((best, value, i) => (Math.abs(value - t) < Math.abs(data.t[best] - t) ? i : best), 0));
  };
  root.addEventListener("pointermove", nearest);
  root.addEventListener("pointerdown", nearest);
  root.addEventListener("pointerleave", leave);
  root.addEventListener("focus", () => root.matches(":focus-visible") && at(index));
  root.addEventListener("blur", leave);
  root.addEventListener("keydown", (event) => {
    const to = stepped(event, index, data.t.length);
    if (to !== null) at(to);
  });
}

/** Dim all curves but one, and draw its barrier; null shows all of them alike. */
function emphasise(method, { marks, lines, groups, x, y, chord, quantity, width }) {
  groups.forEach((group, i) => group.classList.toggle("dim", method !== null && i !== method));
  marks.replaceChildren();
  const line = lines[method];
  if (method === null || !chord || line.barrier === null || groups[method].classList.contains("hidden")) return;
  const worst = quantity.id === "loss" ? line.worst : line.calibratedWorst;
  const value = line.values[line.t.indexOf(worst)];
  if (worst === null || value === null || value === undefined) return;
  const end = x(worst) > width / 2 ? "end" : "start";
  const text = `barrier ${quantity.id === "loss" ? line.barrier : line.calibratedBarrier}`;
  marks.append(
    svg("line", { class: `rise m${method}`, x1: x(worst), x2: x(worst), y1: y(value), y2: y(chord(worst)) }),
    svg("circle", { class: `ring m${method}`, cx: x(worst), cy: y(value), r: 4.5 }),
    svg("text", { class: "rise-label halo", x: x(worst) + (end === "end" ? -9 : 9), y: y(value) - 9, "text-anchor": end }, text),
  );
}

/** A name in at most so many letters. */
function clipped(name, most) {
  return name.length <= most ? name : `${name.slice(0, most / 2)}…${name.slice(1 - most / 2)}`;
}
