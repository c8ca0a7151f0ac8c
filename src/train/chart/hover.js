// The step nearest to a pointer or a finger on a chart: a line there, a point on each series, and their values in a box.
(() => {
  "use strict";
  const made = (tag, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const name in attributes) element.setAttribute(name, attributes[name]);
    return element;
  };
  const box = document.createElement("div");
  box.className = "values";
  box.hidden = true;
  document.body.append(box);
  // The place of the last step that is nearest to `wanted`.
  const nearest = (steps, wanted) => {
    let low = 0, high = steps.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((steps[middle] + steps[middle + 1]) / 2 < wanted) low = middle + 1; else high = middle;
    }
    return low;
  };
  const row = (name, text, colour) => {
    const line = document.createElement("p"), value = document.createElement("b");
    if (colour !== undefined) {
      const key = document.createElement("i");
      key.className = "key c" + colour;
      line.append(key);
    }
    line.append(name + " ", value);
    value.textContent = text;
    return line;
  };
  let shown = null;
  const hide = () => {
    if (shown) shown.remove();
    shown = null;
    box.hidden = true;
  };
  for (const svg of document.querySelectorAll("svg[data-chart]")) {
    const chart = JSON.parse(svg.dataset.chart), [left, right, top, bottom] = chart.frame;
    const text = value => value === null ? "not finite"
      : String(+(value * chart.factor).toPrecision(4)) + chart.sign;
    const x = step => left + (step - chart.steps[0]) / (chart.steps[1] - chart.steps[0]) * (right - left);
    const y = value => bottom - (value - chart.values[0]) / (chart.values[1] - chart.values[0]) * (bottom - top);
    const show = event => {
      const area = svg.getBoundingClientRect(), width = svg.viewBox.baseVal.width;
      const at = Math.min(Math.max((event.clientX - area.left) / area.width * width, left), right);
      const wanted = chart.steps[0] + (at - left) / (right - left) * (chart.steps[1] - chart.steps[0]);
      const picked = chart.series.filter(series => series.steps.length)
        .map(series => [series, nearest(series.steps, wanted)]);
      if (!picked.length) return;
      // The step that is nearest in any series. One that was not measured there shows its nearest step, and says which.
      const step = picked.map(([series, i]) => series.steps[i])
        .reduce((a, b) => Math.abs(b - wanted) < Math.abs(a - wanted) ? b : a);
      hide();
      shown = made("g", {class: "pointed"});
      shown.append(made("line", {x1: x(step), x2: x(step), y1: top, y2: bottom}));
      box.replaceChildren(row(chart.axis, String(+step.toFixed(2))));
      for (const [series, i] of picked) {
        if (step < series.steps[0] || step > series.steps[series.steps.length - 1]) continue;
        const own = series.steps[i], elsewhere = own === step ? "" : ` (${chart.axis} ${+own.toFixed(2)})`;
        const value = series.values[i], mean = series.means ? series.means[i] : value;
        if (mean !== null) shown.append(made("circle", {class: "dot c" + series.colour, cx: x(own), cy: y(mean), r: 3.4}));
        const averaged = series.means && mean !== null ? ", mean " + text(mean) : "";
        box.append(row(series.name, text(value) + averaged + elsewhere, series.colour));
      }
      svg.append(shown);
      box.hidden = false;
      const [wide, high] = [box.offsetWidth, box.offsetHeight], place = area.left + x(step) / width * area.width;
      const beside = place + 12 + wide < document.documentElement.clientWidth ? place + 12 : place - 12 - wide;
      box.style.left = Math.max(4, beside) + scrollX + "px";
      box.style.top = Math.max(4, area.top - high - 2) + scrollY + "px";
    };
    svg.addEventListener("pointermove", show);
    svg.addEventListener("pointerdown", show);
    svg.addEventListener("pointerleave", event => { if (event.pointerType === "mouse") hide(); });
  }
  // A finger that touches something else puts the values away.
  document.addEventListener("pointerdown", event => { if (!event.target.closest("svg[data-chart]")) hide(); });
})();
