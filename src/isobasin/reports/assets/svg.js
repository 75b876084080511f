"use strict";

/** An SVG element with attributes and text. */
function svg(tag, attributes = {}, text = undefined) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

/** An HTML element with a class and children, which may be text. */
function html(tag, className, ...children) {
  const element = document.createElement(tag);
  element.className = className;
  element.append(...children);
  return element;
}

/** A number of at most four digits. */
function shown(value, percent = false) {
  if (value === null || value === undefined) return "not finite";
  if (percent) return `${(100 * value).toFixed(1)} %`;
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) return value.toExponential(1).replace("e+", "e");
  return String(Number(value.toPrecision(4)));
}

/** Round numbers that divide a range, about `count` of them. */
function linearTicks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough) ?? 10);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(i * step);
  return found;
}

/** Powers of ten in a range, with what lies between them if there are few. */
function logTicks(low, high) {
  const decades = Math.log10(high / low);
  const between = decades < 1 ? [1, 1.5, 2, 3, 4, 5, 6, 7, 8] : decades < 2.5 ? [1, 2, 5] : [1];
  const skip = Math.max(1, Math.ceil(decades / 6));
  const found = [];
  for (let power = Math.floor(Math.log10(low)); 10 ** power <= high; power++) {
    if (between.length === 1 && power % skip) continue;
    for (const factor of between) {
      const tick = factor * 10 ** power;
      if (tick >= low * (1 - 1e-9) && tick <= high * (1 + 1e-9)) found.push(tick);
    }
  }
  // Within a few tenths of a decade a logarithm is nearly linear.
  return found.length < 3 ? linearTicks(low, high, 5) : found;
}

/** A map from values to heights, and its ticks. Linear scales start at zero unless nothing is near it. */
function scale(values, log, top, bottom, percent = false) {
  let low = Math.min(...values);
  let high = Math.max(...values);
  if (!values.length) [low, high] = log ? [1, 10] : [0, 1];
  if (log) {
    [low, high] = low === high ? [low / 2, high * 2] : [low / (high / low) ** 0.06, high * (high / low) ** 0.06];
    const y = (value) => bottom - (Math.log(value / low) / Math.log(high / low)) * (bottom - top);
    return { y, ticks: logTicks(low, high), low, high };
  }
  if (low >= 0 && low < 0.5 * high) low = 0;
  const margin = 0.06 * (high - low) || 0.5 * Math.abs(high) || 1;
  high = percent ? Math.min(1, high + margin) : high + margin;
  if (low !== 0) low -= margin;
  if (!(high > low)) low = high - margin;
  const y = (value) => bottom - ((value - low) / (high - low)) * (bottom - top);
  return { y, ticks: linearTicks(low, high, 5), low, high };
}

/** An empty drawing as wide as its place, with a vertical axis whose labels fit. */
function frame(host, height, place, label, percent = false) {
  const width = Math.max(host.clientWidth, 240);
  const tip = html("div", "tip");
  tip.hidden = true;
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, tabindex: 0, "aria-label": label });
  host.replaceChildren(root, tip);
  const texts = place.ticks.map((tick) => (percent ? `${Math.round(1000 * tick) / 10} %` : shown(Number(tick.toPrecision(6)))));
  const left = 14 + 7.2 * Math.max(...texts.map((text) => text.length), 2);
  place.ticks.forEach((tick, i) => {
    root.append(svg("line", { class: "grid", x1: left, x2: width, y1: place.y(tick), y2: place.y(tick) }));
    root.append(svg("text", { x: left - 8, y: place.y(tick) + 4, "text-anchor": "end" }, texts[i]));
  });
  return { root, tip, width, height, left };
}

/** Put a tooltip beside a point, on the side that has room. */
function placeTip(drawing, x, y, ...rows) {
  const { tip, root } = drawing;
  tip.replaceChildren(...rows);
  tip.hidden = false;
  const ratio = root.clientWidth / drawing.width || 1;
  const side = x > drawing.width / 2 ? x * ratio - tip.offsetWidth - 14 : x * ratio + 14;
  tip.style.left = `${Math.max(0, Math.min(side, root.clientWidth - tip.offsetWidth))}px`;
  tip.style.top = `${Math.max(0, y * ratio)}px`;
}

/** A row of a tooltip: the colour of a method, what it is, and a value. */
function tipRow(className, name, value) {
  return html("p", "", html("span", `dot ${className}`), name, html("span", "value", value));
}

/** Where a pointer is in a drawing's own units. */
function position(drawing, event) {
  const box = drawing.root.getBoundingClientRect();
  const ratio = drawing.width / box.width;
  return [(event.clientX - box.left) * ratio, (event.clientY - box.top) * ratio];
}

/** Move an index with the arrow keys; the new one, or null if the key says nothing. */
function stepped(event, index, count) {
  const to = { ArrowLeft: index - 1, ArrowRight: index + 1, Home: 0, End: count - 1 }[event.key];
  if (to === undefined) return null;
  event.preventDefault();
  return Math.max(0, Math.min(count - 1, to));
}
