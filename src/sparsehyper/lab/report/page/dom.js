"use strict";

// Elements and numbers. Strings become text nodes: nothing is ever parsed as markup.

const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [k, v] of Object.entries(value)) element.style.setProperty(k, v);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

// As Python rounds, to even where a number lies in the middle: .125 and .625 are such.
const fixed = (value) => ((value * 8) % 4 === 1 ? value - 0.005 : value).toFixed(2);
const percent = (share) => (share === null ? "–" : `${fixed(100 * share)}%`);
const points = (share) => `${share < 0 ? "−" : "+"}${fixed(Math.abs(100 * share))}`;
const count = (number) => number.toLocaleString("en-US");
const number = (value) => (value === null ? "–" : String(Number(value.toPrecision(4))));
const inPercent = (share) => `${number(100 * share)}%`; // of axes
const decimals = (value) => (value === null ? "–" : minus(value.toFixed(3)));
const minus = (text) => text.replaceAll("-", "−");
const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
const range = (n) => Array.from({ length: n }, (_, i) => i);
const grouped = (list, key) => [...Map.groupBy(list, key)];
const plural = (n, word) => `${count(n)} ${word}${n === 1 ? "" : "s"}`;

/* What scores are called and how they are written: accuracies in per cent, R² as they are. */
const SCORES = {
  accuracy: { name: "accuracy", title: "Accuracy", several: "accuracies", loss: "loss", losses: "Loss, in nats", text: percent, sd: (sd) => fixed(100 * sd), axis: inPercent, share: true },
  "R²": { name: "R²", title: "R²", several: "R²", loss: "squared error", losses: "Squared error, in scaled units", text: decimals, sd: decimals, axis: (value) => minus(number(value)), share: false },
  metric: { name: "minus the loss", title: "Minus the loss", several: "losses", loss: "squared error", losses: "Squared error, in scaled units", text: decimals, sd: decimals, axis: (value) => minus(number(value)), share: false },
};

const scroll = (label, ...children) =>
  h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label }, children);

/* A table. A column has a `title`, `text(row)`, and if it sorts a `value(row)`; `bar(row)` in 0 … 1
   draws behind the text, `heat(row)` colours the cell. The first column names the row. `sorted`: of a column, by its number. */
function table({ label, columns, rows, sorted, descending = false, row: decorate }) {
  const body = h("tbody");
  const cells = columns.map((column, i) =>
    h("th", { scope: "col", class: column.left && "left" },
      column.value ? h("button", { type: "button", onclick: () => sort(i) }, column.title) : column.title));
  const lines = rows.map((row, index) => {
    const line = h("tr", {}, columns.map((column, i) => {
      const content = column.text(row, index);
      if (i === 0) return h("th", { scope: "row" }, content);
      if (column.heat) return h("td", { class: "heat", style: { "--share": column.heat(row, index) } }, content);
      if (!column.bar) return h("td", { class: column.left ? "left text" : column.class }, content);
      const width = `${Math.max(0, Math.min(1, column.bar(row))) * 85}%`;
      return h("td", { class: "bar" }, h("i", { style: { width } }), h("span", {}, content));
    }));
    if (decorate) decorate(line, row, index);
    return { line, row, index };
  });
  let state = { column: null, down: false };
  function sort(i, down = state.column === i ? !state.down : false) {
    state = { column: i, down };
    const value = columns[i].value;
    const order = (a, b) => (value(a.row, a.index) > value(b.row, b.index)) - (value(a.row, a.index) < value(b.row, b.index));
    lines.sort((a, b) => (down ? -1 : 1) * order(a, b) || a.index - b.index);
    cells.forEach((cell, j) => cell.setAttribute("aria-sort", j !== i ? "none" : down ? "descending" : "ascending"));
    body.replaceChildren(...lines.map((line) => line.line));
  }
  if (sorted === undefined) body.append(...lines.map((line) => line.line));
  else sort(sorted, descending);
  return scroll(label, h("table", {}, h("caption", { class: "unseen" }, label), h("thead", {}, h("tr", {}, cells)), body));
}

// A table of texts, as the command line prints it.
const texts = ([title, columns, rows], left = false) =>
  table({ label: title, rows, columns: columns.map((title, i) => ({ title, left, text: (row) => String(row[i]) })) });

let fields = 0;

function field(label, control, wide = false) {
  control.id = `field-${fields++}`;
  return h("div", { class: wide ? "field wide" : "field" }, h("label", { for: control.id }, label), control);
}

function choice(label, options, value, change) {
  const select = h("select", { onchange: () => change(Number(select.value)) },
    options.map(([key, text]) => h("option", { value: key }, text)));
  select.value = value;
  return { select, field: field(label, select) };
}

const tiles = (list) => h("dl", { class: "tiles" }, list.filter(Boolean).map(([name, value, more, first]) =>
  h("div", { class: first && "first" }, h("dt", {}, name), h("dd", { class: "value" }, value), more && h("dd", { class: "more" }, more))));

const folded = (title, ...children) => h("details", {}, h("summary", {}, title), children);
