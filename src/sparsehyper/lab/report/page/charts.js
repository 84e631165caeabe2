// What charts are made of: colours, axes, markers, lines, names and legends.

const BLUE = "var(--accent)", ORANGE = "var(--second)";
const VIRIDIS = [[68, 1, 84], [65, 68, 135], [42, 120, 142], [34, 168, 132], [122, 209, 81], [253, 231, 37]];

function viridis(share) {
  const at = Math.max(0, Math.min(1, share)) * (VIRIDIS.length - 1), i = Math.min(Math.floor(at), VIRIDIS.length - 2);
  return VIRIDIS[i].map((value, c) => Math.round(value + (at - i) * (VIRIDIS[i + 1][c] - value)));
}

const GROUNDS = { light: [255, 255, 255], dark: [29, 32, 35] }; // of the page's cards
const brightness = (rgb) => {
  const [r, g, b] = rgb.map((c) => (c / 255 <= 0.04 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};

const GREYS = { "#000000": "var(--ink)", "#555555": "var(--muted)" };

/* A printed colour, taken towards black or white until its contrast with the ground is 3:1. */
const shade = (colour) => {
  if (colour in GREYS) return GREYS[colour];
  const printed = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
  const on = (ground, towards) => {
    for (let share = 0; ; share += 0.05) {
      const rgb = printed.map((c) => Math.round(c + share * (towards - c)));
      const [low, high] = [brightness(rgb), brightness(ground)].sort((a, b) => a - b);
      if ((high + 0.05) / (low + 0.05) >= 3 || share >= 1) return `rgb(${rgb})`;
    }
  };
  return `light-dark(${on(GROUNDS.light, 0)}, ${on(GROUNDS.dark, 255)})`;
};

function ticks(low, high, wanted) {
  const rough = (high - low) / wanted || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(10)));
  return found;
}

function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
    for (const m of [1, 2, 5]) if (m * 10 ** power >= low && m * 10 ** power <= high) found.push(Number((m * 10 ** power).toPrecision(3)));
  return found;
}

/* Where a value lies between two pixels, and `back` from there. */
function scale({ domain: [a, b], log }, from, to) {
  const f = log ? Math.log : (v) => v, back = log ? Math.exp : (v) => v, size = f(b) - f(a) || 1;
  const place = (value) => from + ((f(value) - f(a)) / size) * (to - from);
  place.back = (at) => back(f(a) + ((at - from) / (to - from)) * size);
  return place;
}

const ticksOf = (axis, wanted) => {
  const [low, high] = axis.domain;
  if (axis.ticks) return axis.ticks.filter((value) => value >= low && value <= high);
  return axis.log && high > 3 * low ? logTicks(low, high) : ticks(low, high, wanted);
};

/* Axes: `x` and `y` have a `domain`, a `title`, and may have `log`, `ticks` and `format`; `view` is
   that of the chart. Returns the drawing, the `plot` to draw in, and where a value lies. */
function axes({ width, height, x, y, left = 46, view = {} }) {
  if (view.x) [x, y] = [{ ...x, domain: view.x }, { ...y, domain: view.y }];
  const right = width - 14, top = y.title ? 26 : 10, bottom = height - (x.title ? 40 : 24);
  const px = scale(x, left + 8, right), py = scale(y, bottom, top);
  const svg = s("svg", { width, height, viewBox: `0 0 ${width} ${height}` });
  const format = (axis) => axis.format || ((value) => String(value));
  let last = Infinity;
  for (const value of ticksOf(y, Math.max(2, height / 60))) {
    const at = py(value);
    if (last - at < 14) continue;
    last = at;
    svg.append(s("line", { class: "grid", x1: left, x2: right, y1: at, y2: at }), s("text", { x: left - 6, y: at + 4, "text-anchor": "end" }, format(y)(value)));
  }
  last = -Infinity;
  for (const value of ticksOf(x, Math.max(2, width / 110))) {
    const at = px(value), text = format(x)(value), size = text.length * 7 + 8;
    if (at - last < size) continue;
    last = at;
    svg.append(s("text", { x: at, y: bottom + 17, "text-anchor": "middle" }, text));
  }
  svg.append(s("line", { class: "rule", x1: left, x2: right, y1: bottom, y2: bottom }));
  if (x.title) svg.append(s("text", { x: right, y: height - 5, "text-anchor": "end" }, x.title));
  if (y.title) svg.append(s("text", { x: 0, y: 12 }, y.title));
  const [w, h] = [right - left, bottom - top];
  const plot = s("svg", { x: left, y: top, width: w, height: h, viewBox: `${left} ${top} ${w} ${h}`, class: view.x ? "cut" : "" });
  svg.append(plot);
  view.frame = { px, py, whole: { left: left + 8, right, top, bottom } };
  return { svg, plot, px, py, left, right, top, bottom };
}

const SHAPES = {
  s: "-.85,-.85 .85,-.85 .85,.85 -.85,.85", "^": "0,-1.1 1,.8 -1,.8", v: "0,1.1 1,-.8 -1,-.8",
  "<": "-1.1,0 .8,-1 .8,1", ">": "1.1,0 -.8,-1 -.8,1", D: "0,-1.2 1.2,0 0,1.2 -1.2,0", d: "0,-1.2 .7,0 0,1.2 -.7,0",
  P: "-.4,-1.1 .4,-1.1 .4,-.4 1.1,-.4 1.1,.4 .4,.4 .4,1.1 -.4,1.1 -.4,.4 -1.1,.4 -1.1,-.4 -.4,-.4",
  X: "-1.1,-.6 -.6,-1.1 0,-.5 .6,-1.1 1.1,-.6 .5,0 1.1,.6 .6,1.1 0,.5 -.6,1.1 -1.1,.6 -.5,0",
  "*": "0,-1.3 .3,-.4 1.2,-.4 .5,.15 .75,1.05 0,.5 -.75,1.05 -.5,.15 -1.2,-.4 -.3,-.4",
};

function marker(kind, x, y, size, attributes) {
  if (!SHAPES[kind]) return s("circle", { cx: x, cy: y, r: size, ...attributes });
  const corners = SHAPES[kind].split(" ").map((pair) => pair.split(",").map(Number));
  return s("polygon", { points: corners.map(([a, b]) => `${x + a * size},${y + b * size}`).join(" "), ...attributes });
}

const path = (pairs, px, py) => pairs.map(([x, y], i) => `${i ? "L" : "M"}${px(x).toFixed(1)},${py(y).toFixed(1)}`).join("");

/* Lines with markers. A line has a `name`, a `colour`, `points` (x, y, and maybe a deviation), a
   `marker`, and may be `dashed` or `faint`. `tip(line, point)` is what is said of a point. */
function lines(frame, list, tip) {
  const { svg, plot, px, py } = frame;
  for (const line of list) {
    const stroke = line.colour, opacity = line.faint && 0.6, bare = line.points.length > 60;
    plot.append(s("path", { d: path(line.points, px, py), fill: "none", stroke, "stroke-width": line.faint ? 1.2 : 2, "stroke-opacity": opacity, "stroke-dasharray": line.dashed && "6 4" }));
    for (const point of line.points) {
      const [x, y, sd] = point;
      if (sd) plot.append(s("line", { x1: px(x), x2: px(x), y1: py(y - sd), y2: py(y + sd), stroke, "stroke-opacity": opacity, "stroke-width": 1.5 }));
      plot.append(marker(line.marker || "o", px(x), py(y), bare ? 6 : line.faint ? 3 : 4.5, { fill: bare ? "transparent" : stroke, "data-tip": tip && tip(line, point) }));
    }
  }
  return svg;
}

/* Writes a name beside each point, in the first place that covers nothing; some find none. */
function labels({ svg, plot, px, py, right }, list) {
  const taken = list.flatMap(({ points }) => points.map(([x, y]) => [px(x) - 6, py(y) - 6, 12, 12]));
  const spots = [[10, 4, "start"], [-10, 4, "end"], [0, -10, "middle"], [0, 19, "middle"], [9, -8, "start"], [9, 17, "start"], [-9, -8, "end"], [-9, 17, "end"]];
  for (const { name, points } of list) {
    const [x, y] = points.at(-1), size = name.length * 6.6;
    for (const [dx, dy, anchor] of spots) {
      const box = [px(x) + dx - { start: 0, middle: size / 2, end: size }[anchor], py(y) + dy - 11, size, 14];
      const free = box[0] > 50 && box[0] + size <= right + 8 && taken.every(([a, b, w, h]) =>
        a > box[0] + box[2] || a + w < box[0] || b > box[1] + box[3] || b + h < box[1]);
      if (!free) continue;
      taken.push(box);
      plot.append(s("text", { x: px(x) + dx, y: py(y) + dy, "text-anchor": anchor, class: "strong" }, name));
      break;
    }
  }
  return svg;
}

const sample = (line) => s("svg", { width: 26, height: 14, "aria-hidden": "true" },
  s("line", { x1: 1, x2: 25, y1: 7, y2: 7, stroke: line.colour, "stroke-width": 2, "stroke-dasharray": line.dashed && "6 4" }),
  marker(line.marker || "o", 13, 7, 4.5, { fill: line.colour }));
const legend = (list) => h("ul", { class: "legend" }, list.map((line) => h("li", {}, sample(line), line.name)));

function ramp(low, high, colour) {
  const canvas = h("canvas", { width: 64, height: 1, "aria-hidden": "true" });
  const context = canvas.getContext("2d");
  for (const i of range(64)) {
    context.fillStyle = `rgb(${colour(i / 63)})`;
    context.fillRect(i, 0, 1, 1);
  }
  return h("div", { class: "ramp" }, h("span", {}, low), canvas, h("span", {}, high));
}
