// Shows the values under the pointer in each chart's legend. The page says everything without it.
document.querySelectorAll("figure.chart").forEach((figure) => {
  const svg = figure.querySelector("svg"), d = svg.dataset;
  const [x0, x1, y0, y1, left, right, top, bottom] = ["x0", "x1", "y0", "y1", "left", "right", "top", "bottom"].map((k) => Number(d[k]));
  const cursor = document.createElementNS("http://www.w3.org/2000/svg", "path");
  cursor.setAttribute("class", "cursor");
  const lines = [...svg.querySelectorAll("g[data-label]")].map((g) => ({
    out: figure.querySelector(`output[data-series="${CSS.escape(g.dataset.label)}"]`),
    points: [
      ...[...g.querySelectorAll("polyline")].flatMap((line) => [...line.points].map((p) => [p.x, p.y])),
      ...[...g.querySelectorAll("circle")].map((c) => [c.cx.baseVal.value, c.cy.baseVal.value]),
    ],
  })).filter((line) => line.out && line.points.length);
  const text = (y) => {
    const value = y0 + ((bottom - y) / (bottom - top)) * (y1 - y0);
    return ("percent" in d ? `${(100 * value).toFixed(1)} %` : String(Number(value.toPrecision(3)))).replace("-", "\u2212");
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    if (x < left - 5 || x > right + 5) return;
    lines.forEach(({ out, points }) => {
      const near = points.reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a));
      const step = Math.round(x0 + ((near[0] - left) / (right - left)) * (x1 - x0));
      out.textContent = `${text(near[1])} at ${step}`;
    });
    cursor.setAttribute("d", `M${x.toFixed(1)} ${top}V${bottom}`);
    svg.append(cursor);
  });
  svg.addEventListener("pointerleave", () => {
    cursor.remove();
    lines.forEach(({ out }) => (out.textContent = ""));
  });
});
