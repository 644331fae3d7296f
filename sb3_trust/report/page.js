"use strict";
// The clip objective: min(r A, clip(r, 1 - epsilon, 1 + epsilon) A) for A = 1 or -1, and the run's ratios.
(() => {
  const data = JSON.parse(document.getElementById("clip-data").textContent);
  const slider = document.getElementById("epsilon");
  const epsilonLabel = document.getElementById("epsilon-value");
  const share = document.getElementById("clip-share");
  const chooser = document.getElementById("update");
  const reset = document.getElementById("own-epsilon");
  const plot = document.getElementById("clip-plot");
  const description = document.getElementById("clip-description");
  const LARGEST_RATIO = 2;
  const BAR = 2; // bins in a bar of the histogram
  const MARGIN = {left: 48, right: 14, top: 14, bottom: 40};
  const CURVE_HEIGHT = 250;
  const HISTOGRAM_HEIGHT = 130;
  const GAP = 50;

  const sign = () => Number(document.querySelector('input[name="advantage"]:checked').value);
  const chosen = () => data.updates[chooser ? chooser.selectedIndex : 0];
  const format = (value) => value.toLocaleString("en-US");
  const percent = (part, whole) => (whole ? (100 * part / whole).toFixed(1) : "0.0") + "%";

  // Samples of one sign as [bin, count] pairs, and how many of them the objective's gradient leaves out.
  const pairs = (flat) => Array.from({length: flat.length / 2}, (_, i) => [flat[2 * i], flat[2 * i + 1]]);
  const isStopped = (bin, bound, a) => (a > 0 ? bin >= bound : bin < bound);
  function tally(flat, epsilon, a) {
    const bound = Math.round((1 + a * epsilon) * data.binsPerUnit);
    let all = 0, stopped = 0;
    for (const [bin, number] of pairs(flat)) {
      all += number;
      if (isStopped(bin, bound, a)) stopped += number;
    }
    return {all, stopped, bound};
  }

  function element(name, attributes, text) {
    const made = document.createElementNS(plot.namespaceURI, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function draw() {
    const epsilon = Number(slider.value);
    const a = sign();
    const update = chosen();
    const width = Math.max(plot.clientWidth, 240);
    const height = MARGIN.top + CURVE_HEIGHT + MARGIN.bottom + (update ? GAP - 14 + HISTOGRAM_HEIGHT : 0);
    const x = (ratio) => MARGIN.left + ratio / LARGEST_RATIO * (width - MARGIN.left - MARGIN.right);
    const low = a > 0 ? 0 : -LARGEST_RATIO;
    const y = (value) => MARGIN.top + (1 - (value - low) / LARGEST_RATIO) * CURVE_HEIGHT;
    const kink = 1 + a * epsilon;
    const end = a > 0 ? LARGEST_RATIO : 0;
    const line = (...points) => "M" + points.map(([r, v]) => `${x(r).toFixed(2)},${y(v).toFixed(2)}`).join("L");
    const parts = [];

    const regionLeft = Math.min(x(kink), x(end));
    const regionWidth = Math.abs(x(end) - x(kink));
    const bottom = height - MARGIN.bottom;
    const region = {x: regionLeft, y: MARGIN.top, width: regionWidth, height: bottom - MARGIN.top};
    parts.push(element("rect", {class: "region", id: "clip-region", ...region}));
    parts.push(element("rect", {fill: "url(#stripes)", ...region}));
    for (let tick = 0; tick <= 4; tick++) {
      const value = low + tick / 2, ratio = tick / 2;
      parts.push(element("path", {class: "grid", d: `M${x(0)},${y(value)}H${x(LARGEST_RATIO)}`}));
      parts.push(element("path", {class: "grid", d: `M${x(ratio)},${MARGIN.top}V${bottom}`}));
      parts.push(element("text", {x: x(0) - 8, y: y(value) + 4, "text-anchor": "end"}, value.toFixed(1)));
      parts.push(element("text", {x: x(ratio), y: bottom + 16, "text-anchor": "middle"}, ratio.toFixed(1)));
    }
    parts.push(element("text", {x: x(1), y: bottom + 34, "text-anchor": "middle"},
      "probability ratio r = new / old"));
    parts.push(element("path", {class: "unclipped", id: "unclipped", d: line([0, 0], [2, 2 * a])}));
    const curve = a > 0 ? [[0, 0], [kink, kink], [2, kink]] : [[0, -kink], [kink, -kink], [2, -2]];
    parts.push(element("path", {class: "clipped", id: "clipped", d: line(...curve)}));
    parts.push(element("path", {class: "flat", id: "flat", d: line([kink, a * kink], [end, a * kink])}));
    if (regionWidth > 90) {
      const labelY = a > 0 ? y(kink) + 20 : y(-kink) - 12;
      parts.push(element("text", {x: regionLeft + regionWidth / 2, y: labelY, "text-anchor": "middle"},
        "gradient 0"));
    }
    if (update) parts.push(...histogram(update, epsilon, a, x, bottom));

    const old = [...plot.children].filter((child) => child.tagName !== "defs" && child !== description);
    old.forEach((child) => child.remove());
    plot.append(...parts);
    plot.setAttribute("viewBox", `0 0 ${width} ${height}`);
    plot.setAttribute("height", height);
    say(epsilon, a, update);
  }

  function histogram(update, epsilon, a, x, bottom) {
    const flat = a > 0 ? update.positive : update.negative;
    const {bound} = tally(flat, epsilon, a);
    const bars = {moved: new Map(), stopped: new Map()};
    const limit = LARGEST_RATIO * data.binsPerUnit;
    for (const [bin, number] of pairs(flat)) {
      if (bin >= limit) continue;
      const kind = isStopped(bin, bound, a) ? bars.stopped : bars.moved;
      const bar = Math.floor(bin / BAR);
      kind.set(bar, (kind.get(bar) || 0) + number);
    }
    const totals = new Map(bars.moved);
    for (const [bar, number] of bars.stopped) totals.set(bar, (totals.get(bar) || 0) + number);
    const tallest = Math.max(1, ...totals.values());
    const unit = BAR / data.binsPerUnit;
    const path = (map, floor) => [...map].map(([bar, number]) => {
      const base = bottom - (floor.get(bar) || 0) / tallest * (HISTOGRAM_HEIGHT - 8);
      const top = base - number / tallest * (HISTOGRAM_HEIGHT - 8);
      return `M${x(bar * unit).toFixed(2)},${base.toFixed(2)}V${top.toFixed(2)}` +
        `H${x((bar + 1) * unit).toFixed(2)}V${base.toFixed(2)}Z`;
    }).join("");
    const top = bottom - HISTOGRAM_HEIGHT;
    return [
      element("path", {class: "grid", d: `M${x(0)},${bottom}H${x(LARGEST_RATIO)}`}),
      element("path", {class: "bars", id: "bars-moved", d: path(bars.moved, new Map())}),
      element("path", {class: "bars stopped", id: "bars-stopped", d: path(bars.stopped, bars.moved)}),
      element("text", {x: x(0) - 8, y: top + 12, "text-anchor": "end"}, format(tallest)),
      element("text", {x: x(0) - 8, y: bottom - 2, "text-anchor": "end"}, "0"),
      element("text", {class: "soft", x: x(0) + 4, y: top - 8},
        `samples with A ${a > 0 ? ">" : "<"} 0, by ratio`),
    ];
  }

  function say(epsilon, a, update) {
    epsilonLabel.textContent = epsilon.toFixed(3);
    slider.setAttribute("aria-valuetext", `epsilon ${epsilon.toFixed(3)}`);
    const side = a > 0 ? `above ${(1 + epsilon).toFixed(3)}` : `below ${(1 - epsilon).toFixed(3)}`;
    const of = `A ${a > 0 ? ">" : "<"} 0`;
    description.textContent = `Clipped objective for ${of}: it follows r times A, and is flat where the ratio ` +
      `r is ${side}.`;
    if (!update) {
      share.textContent = `With ${of} the gradient is zero where the ratio is ${side}.`;
      return;
    }
    const positive = tally(update.positive, epsilon, 1);
    const negative = tally(update.negative, epsilon, -1);
    const one = a > 0 ? positive : negative;
    const stopped = positive.stopped + negative.stopped;
    const all = positive.all + negative.all + update.zero;
    const limit = LARGEST_RATIO * data.binsPerUnit;
    const beyond = pairs(a > 0 ? update.positive : update.negative)
      .reduce((sum, [bin, number]) => sum + (bin >= limit ? number : 0), 0);
    share.textContent = `Update ${update.update}: of the ${format(one.all)} samples with ${of}, ` +
      `${percent(one.stopped, one.all)} (${format(one.stopped)}) have a ratio ${side}, where the gradient is zero. ` +
      `Of all ${format(all)} samples, of either sign: ${percent(stopped, all)} (${format(stopped)}).` +
      (beyond ? ` ${format(beyond)} lie right of the picture.` : "") +
      (update.unusable ? ` ${format(update.unusable)} without a usable ratio are left out.` : "");
  }

  // The clip range that the run had at this update, or null.
  function ownEpsilon() {
    const update = chosen();
    return update ? update.epsilon : (data.isOwn ? data.epsilon : null);
  }

  function redraw() {
    const own = ownEpsilon();
    reset.textContent = own ? `ε = ${own.toFixed(3)}, the run's` : `ε = ${data.epsilon.toFixed(3)}, as usual`;
    draw();
  }

  function restart() {
    slider.value = ownEpsilon() || data.epsilon;
    redraw();
  }

  slider.addEventListener("input", draw);
  document.querySelectorAll('input[name="advantage"]').forEach((input) => input.addEventListener("change", draw));
  if (chooser) chooser.addEventListener("change", redraw);
  reset.addEventListener("click", restart);
  new ResizeObserver(draw).observe(plot.parentElement);
  restart();
})();
