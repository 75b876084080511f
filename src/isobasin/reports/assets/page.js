"use strict";

(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const state = { pair: 0, quantity: 0, log: false, logPossible: false, hidden: new Set(), alignment: null, layer: null };
  const by = (id) => document.getElementById(id);
  const quantities = [...document.querySelectorAll("[data-quantity]")];
  const keys = [...document.querySelectorAll("[data-method]")];
  const heads = by("heads-section");
  let curves = null;

  /** Whether a quantity was measured on the pair that is shown. */
  function has(quantity) {
    return data.pairs[state.pair].lines.some((line) => data.quantities[quantity].id in line.values);
  }

  function redrawCurves() {
    if (!has(state.quantity)) state.quantity = 0;
    curves = drawCurves(data, state, read);
    quantities.forEach((button, i) => {
      button.setAttribute("aria-pressed", i === state.quantity);
      button.hidden = i > 0 && !has(i);
    });
    by("log").setAttribute("aria-pressed", state.log && state.logPossible);
    by("log").disabled = !state.logPossible;
    by("chord-key").style.visibility = curves.chord ? "visible" : "hidden";
    by("band-key").hidden = !curves.bands;
    keys.forEach((key, i) => {
      key.setAttribute("aria-pressed", !state.hidden.has(i));
      const measured = data.pairs[state.pair].lines[i].t.length;
      key.disabled = !measured;
      // Of many pairs, each shows what it has.
      key.hidden = !measured && !heads;
    });
    read(null);
  }

  /** Show texts beside the legend's entries: values at a t, or else the barriers. */
  function read(where, texts = barriers()) {
    by("value-title").textContent = where ?? (data.quantities[state.quantity].chord ? "barrier" : "\u00a0");
    keys.forEach((key, i) => (key.querySelector(".value").textContent = texts[i]));
  }

  function barriers() {
    const quantity = data.quantities[state.quantity];
    return data.pairs[state.pair].lines.map((line) => {
      if (line.t.length < data.t.length) return `${line.t.length} of ${data.t.length}`;
      if (!quantity.chord) return "";
      return quantity.id === "calibrated_loss" ? line.calibratedBarrier : line.barrier;
    });
  }

  /** The alignments and layers that this pair has; the chosen ones are kept where they exist. */
  function fillChoices() {
    const all = data.pairs[state.pair].layers;
    const aligned = all.flatMap((layers, method) => (layers ? [method] : []));
    heads.hidden = by("layers-section").hidden = !aligned.length;
    if (!aligned.length) return;
    if (!aligned.includes(state.alignment)) state.alignment = aligned.at(-1);
    const numbers = all[state.alignment].map(({ layer }) => layer);
    if (!numbers.includes(state.layer)) state.layer = mostMoved(all[state.alignment]);
    options("alignment", aligned, (method) => data.methods[method].name, state.alignment);
    options("layer", numbers, String, state.layer);
  }

  /** The layer that was furthest away: in a run of one scope the others have nothing to show. */
  function mostMoved(layers) {
    return layers.reduce((best, layer) => ((layer.before ?? 0) > (best.before ?? 0) ? layer : best)).layer;
  }

  function options(id, values, name, chosen) {
    by(id).replaceChildren(...values.map((value) => new Option(name(value), value, false, value === chosen)));
  }

  function redrawLayers() {
    if (!heads) return;
    fillChoices();
    if (heads.hidden) return;
    const focused = document.activeElement.closest(".chart")?.id;
    drawHeads(data, state);
    drawLayers(data, state, (layer) => {
      state.layer = layer;
      redrawLayers();
    });
    if (focused) by(focused).querySelector("svg")?.focus();
  }

  function redraw() {
    redrawCurves();
    redrawLayers();
  }

  quantities.forEach((button, i) =>
    button.addEventListener("click", () => {
      state.quantity = i;
      state.log = data.quantities[i].log;
      redrawCurves();
    }),
  );
  by("log").addEventListener("click", () => {
    state.log = !state.log;
    redrawCurves();
  });
  keys.forEach((key, i) => {
    key.addEventListener("click", () => {
      if (!state.hidden.delete(i)) state.hidden.add(i);
      redrawCurves();
    });
    for (const [event, method] of [["pointerenter", i], ["focus", i], ["pointerleave", null], ["blur", null]]) {
      key.addEventListener(event, () => curves.show(method));
    }
  });
  by("pair")?.addEventListener("change", (event) => {
    state.pair = Number(event.target.value);
    redraw();
  });
  by("alignment")?.addEventListener("change", (event) => {
    state.alignment = Number(event.target.value);
    redrawLayers();
  });
  by("layer")?.addEventListener("change", (event) => {
    state.layer = Number(event.target.value);
    redrawLayers();
  });

  document.querySelector(".scripted").hidden = false;
  document.querySelector(".unscripted").hidden = true;
  redraw();
  let width = document.body.clientWidth;
  new ResizeObserver(() => {
    if (document.body.clientWidth === width) return;
    width = document.body.clientWidth;
    redraw();
  }).observe(document.body);
})();
