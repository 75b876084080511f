"use strict";

/** Draw which heads were paired in one layer of one alignment, and the costs of all pairs. */
function drawHeads(data, state) {
  const layers = data.pairs[state.pair].layers[state.alignment];
  const layer = layers?.find((one) => one.layer === state.layer);
  const hosts = [document.getElementById("permutation"), document.getElementById("costs")];
  const readout = document.getElementById("cell");
  if (!layer) {
    hosts.forEach((host) => host.replaceChildren());
    return;
  }
  const costs = data.costs[layer.costs];
  const known = costs.flat().filter((value) => value !== null);
  const [least, most] = [Math.min(...known), Math.max(...known)];
  document.getElementById("least").textContent = known.length ? shown(least) : "";
  document.getElementById("most").textContent = known.length ? shown(most) : "";
  hosts.forEach((host) => host.style.setProperty("--m-method", `var(--m${state.alignment})`));

  const colour = (i, j) => {
    const value = costs[i]?.[j];
    if (value === null || value === undefined) return { class: "cell unknown" };
    return { class: "cell", style: `--v: ${(most > least ? (100 * (value - least)) / (most - least) : 0).toFixed(1)}%` };
  };
  const taken = (i, j) => ({ class: layer.heads[i] === j ? "cell taken" : "cell free" });
  const grids = [gridOf(hosts[0], layer.heads, taken, false), gridOf(hosts[1], layer.heads, colour, true)];
  const names = ["Head permutation", "Head costs"];
  const rest = `Layer ${layer.layer}: ${moved(layer.heads)}`;
  const say = (cell) => {
    grids.forEach((grid) => grid.point(cell));
    if (!cell) {
      readout.textContent = rest;
      return;
    }
    const [i, j] = cell;
    const cost = costs[i] ? `, cost ${shown(costs[i][j])}` : "";
    readout.textContent = `Head ${i} of A and head ${j} of B${cost}${layer.heads[i] === j ? ", paired" : ""}`;
  };
  grids.forEach((grid, i) => {
    grid.root.setAttribute("role", "application");
    grid.root.setAttribute("aria-label", `${names[i]} of layer ${layer.layer}: arrow keys move over the heads`);
    grid.listen(say);
  });
  say(null);
}

/** What a permutation does, in words. */
function moved(heads) {
  const count = heads.filter((head, i) => head !== i).length;
  return count ? `${count} of ${heads.length} heads of B move to another place.` : "all heads of B stay in their place.";
}

/** A square of cells, A's heads by row and B's by column. `look` gives a cell's attributes. */
function gridOf(host, heads, look, picks) {
  const count = heads.length;
  const width = Math.max(host.clientWidth, 200);
  const [left, top] = [44, 34];
  const size = Math.min((width - left) / count, 420 / count, 84);
  const height = top + size * count + 4;
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, tabindex: 0 });
  const every = Math.ceil(20 / size);
  for (let i = 0; i < count; i++) {
    for (let j = 0; j < count; j++) {
      const gap = size > 14 ? 2 : 0;
      root.append(svg("rect", { ...look(i, j), "data-cell": `${i} ${j}`, x: left + j * size, y: top + i * size, width: size, height: size, rx: gap }));
    }
    if (i % every) continue;
    root.append(svg("text", { x: left - 8, y: top + (i + 0.5) * size + 4, "text-anchor": "end" }, String(i)));
    root.append(svg("text", { x: left + (i + 0.5) * size, y: top - 7, "text-anchor": "middle" }, String(i)));
  }
  const middle = top + (size * count) / 2;
  root.append(svg("text", { x: 11, y: middle, transform: `rotate(-90 11 ${middle})`, "text-anchor": "middle" }, "head of A"));
  root.append(svg("text", { x: left + (size * count) / 2, y: 11, "text-anchor": "middle" }, "head of B"));
  const box = (i, j, inset) => ({ x: left + j * size + inset, y: top + i * size + inset, width: size - 2 * inset, height: size - 2 * inset });
  if (picks && size > 8) {
    heads.forEach((j, i) => {
      root.append(svg("rect", { class: "pick", ...box(i, j, 2) }));
      root.append(svg("rect", { class: "pick inner", ...box(i, j, 2) }));
    });
  }
  const cursor = svg("rect", { class: "cursor", visibility: "hidden" });
  root.append(cursor);
  host.replaceChildren(root);
  const point = (cell) => {
    cursor.setAttribute("visibility", cell ? "visible" : "hidden");
    if (cell) for (const [name, value] of Object.entries(box(...cell, 0))) cursor.setAttribute(name, value);
  };
  return { root, point, listen: (say) => listenToGrid({ root, width, left, top, size, count }, say) };
}

/** Tell which cell is under the pointer, or was moved to with the arrow keys. */
function listenToGrid(grid, say) {
  let cell = [0, 0];
  const go = (i, j) => {
    cell = [Math.max(0, Math.min(grid.count - 1, i)), Math.max(0, Math.min(grid.count - 1, j))];
    say(cell);
  };
  const follow = (event) => {
    const [x, y] = position(grid, event);
    const [i, j] = [Math.floor((y - grid.top) / grid.size), Math.floor((x - grid.left) / grid.size)];
    if (i >= 0 && j >= 0 && i < grid.count && j < grid.count) go(i, j);
    else say(null);
  };
  grid.root.addEventListener("pointermove", follow);
  grid.root.addEventListener("pointerdown", follow);
  grid.root.addEventListener("pointerleave", () => say(null));
  grid.root.addEventListener("blur", () => say(null));
  grid.root.addEventListener("focus", () => grid.root.matches(":focus-visible") && go(...cell));
  grid.root.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!step) return;
    event.preventDefault();
    go(cell[0] + step[0], cell[1] + step[1]);
  });
}
