// A chart on the page: drawn at the width that there is, walked through by keyboard, zoomed, saved.

const PRINTED = 680; // pixels that a sheet of paper is wide

/* `draw(width, view)` returns an SVG; what it hands `view` to, `axes`, can be zoomed. `data()`
   returns the header and the rows of the CSV. */
function chart(label, draw, { title, data } = {}) {
  const plot = h("div", { class: "plot" }), view = { x: null, y: null };
  let width = 0;
  const points = () => [...plot.querySelectorAll("[data-tip]")];
  function redraw() {
    if (width < 1) return;
    const focused = points().indexOf(document.activeElement);
    view.frame = null;
    const drawing = draw(width, view);
    drawing.setAttribute("role", "group");
    drawing.setAttribute("aria-label", label);
    plot.replaceChildren(drawing);
    points().forEach((point, i) => {
      point.setAttribute("role", point.classList.contains("pick") ? "button" : "img");
      point.setAttribute("aria-label", point.dataset.tip);
      point.setAttribute("tabindex", i === Math.max(0, focused) ? 0 : -1);
    });
    if (focused >= 0) points()[focused]?.focus();
    zooms.forEach((button) => { button.hidden = !view.frame; });
  }
  const past = [];
  function zoom([left, top, right, bottom]) {
    const { px, py } = view.frame;
    past.push([view.x, view.y]);
    [view.x, view.y] = [[px.back(left), px.back(right)], [py.back(bottom), py.back(top)]];
    redraw();
  }
  function nearer() {
    const { left, right, top, bottom } = view.frame.whole, x = (right - left) / 4, y = (bottom - top) / 4;
    zoom([left + x, top + y, right - x, bottom - y]);
  }
  function back() {
    [view.x, view.y] = past.pop() || [null, null];
    redraw();
  }
  const tool = (text, does, act) => h("button", { type: "button", class: "tool", "aria-label": `${does}: ${title || label.split(/[;.]/)[0]}`, onclick: act }, text);
  const zooms = [tool("+", "Zoom in", nearer), tool("−", "Zoom out", back)];
  const name = (title || label).toLowerCase().replace(/[^a-z0-9]+/g, "-").slice(0, 60);
  const head = h("div", { class: "head" }, title ? h("h4", {}, title) : null, h("div", { class: "tools" }, zooms,
    tool("SVG", "Save as SVG", () => saveDrawing(`${name}.svg`, plot.firstChild)),
    data && tool("CSV", "Save as CSV", () => saveRows(`${name}.csv`, data()))));
  const box = h("div", { class: "chart" }, head, plot);
  box.redraw = redraw;
  box.print = () => { width = Math.min(PRINTED, plot.clientWidth || PRINTED); redraw(); };
  box.screen = () => { width = plot.clientWidth; redraw(); };
  plot.addEventListener("keydown", (event) => {
    const all = points(), now = all.indexOf(document.activeElement);
    const to = { ArrowRight: now + 1, ArrowLeft: now - 1, Home: 0, End: all.length - 1 }[event.key];
    if (event.key === "Enter" || event.key === " ") document.activeElement.dispatchEvent(new MouseEvent("click"));
    else if (to === undefined) return;
    event.preventDefault();
    if (!all[to]) return;
    all.forEach((point, i) => point.setAttribute("tabindex", i === to ? 0 : -1));
    all[to].focus();
  });
  dragged(plot, view, zoom);
  new ResizeObserver(() => { if (Math.abs(plot.clientWidth - width) >= 1) box.screen(); }).observe(plot);
  return box;
}

/* Zooms to what a mouse is dragged over; fingers scroll the page. */
function dragged(plot, view, zoom) {
  let from = null, area = null;
  const at = (event) => {
    const box = plot.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  const corners = (a, b) => [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[0], b[0]), Math.max(a[1], b[1])];
  plot.addEventListener("pointerdown", (event) => {
    from = event.pointerType === "mouse" && event.button === 0 && view.frame ? at(event) : null;
  });
  plot.addEventListener("pointermove", (event) => {
    if (!from) return;
    const [left, top, right, bottom] = corners(from, at(event));
    if (!area && right - left + bottom - top < 8) return; // a click
    if (!area) {
      plot.setPointerCapture(event.pointerId);
      plot.firstChild.append(area = s("rect", { class: "area" }));
    }
    fill(area, { x: left, y: top, width: right - left, height: bottom - top }, []);
  });
  plot.addEventListener("pointerup", (event) => {
    if (area) {
      area.remove();
      const [left, top, right, bottom] = corners(from, at(event));
      if (right - left > 8 && bottom - top > 8) zoom([left, top, right, bottom]);
    }
    from = area = null;
  });
}

function save(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

// A spreadsheet would run a text that begins like a formula.
function saveRows(name, rows) {
  const cell = (value) => {
    const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value ?? "");
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  save(name, "text/csv", rows.map((row) => `${row.map(cell).join(",")}\r\n`).join(""));
}

/* The colours of the page are written into the file, on the page's own ground. */
function saveDrawing(name, drawing) {
  const copy = drawing.cloneNode(true), copied = copy.querySelectorAll("*");
  drawing.querySelectorAll("*").forEach((element, i) => {
    const style = getComputedStyle(element);
    for (const key of ["fill", "stroke", "font-size", "font-family", "font-weight"]) copied[i].setAttribute(key, style.getPropertyValue(key));
    for (const key of ["tabindex", "class", "role"]) copied[i].removeAttribute(key);
  });
  copy.prepend(s("rect", { width: "100%", height: "100%", fill: getComputedStyle(drawing.closest("section")).backgroundColor }));
  save(name, "image/svg+xml", new XMLSerializer().serializeToString(copy));
}
