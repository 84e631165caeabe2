// Comparisons of methods, and studies with their claims.

const label = (row) => `${row.method}${row.budget === null ? "" : `, ${row.budget} N`}`;

function comparisonPanel(index, { name, score, config, machine, results, tables, by_budget }) {
  const { rows, tasks, numel, skipped, failures } = results, scores = SCORES[score];
  const best = rows.reduce((a, b) => (a && a.accuracy.mean >= b.accuracy.mean ? a : b), null);
  const spread = ({ accuracy: { sd } }) => (sd === null ? "" : `, ±\u00a0${scores.sd(sd)}`);
  const source = config.data.source.split(/[\\/]/).pop();
  const lead = ["Comparison", plural(tasks.names.length, "task"), [source, config.data.tasks].filter(Boolean).join(" "), `target ${config.target}`].join(" · ");
  const problems = [
    ...skipped.map((row) => `Left out: ${row.method} at ${row.budget} N. ${row.reason}`),
    ...failures.map((row) => `Failed: ${row.method}, seed ${row.seed}. ${row.error}`),
  ];
  return panel(index, name, lead, problems, [
    { id: "glance", title: "At a glance", draw: () => tiles([
      best && [`best mean test ${scores.name}`, scores.text(best.accuracy.mean), `${label(best)}${spread(best)}`, true],
      ...rows.filter((row) => row !== best).map((row) =>
        [label(row), scores.text(row.accuracy.mean), `${fixed(row.parameters_per_target_parameter)} N trainable${spread(row)}`]),
      ["seeds", config.seeds.length, "of each method"],
      ["one target, N", count(numel), "parameters"],
    ]) },
    rows.length && { id: "budget", title: `${scores.title} against budget`, draw: () => [...budgets(by_budget, scores), ...tables.map((one) => texts(one))],
      note: `Mean test ${scores.name} over tasks, and its standard deviation over seeds, against all trainable parameters.` },
    rows.length && { id: "tasks", title: `${scores.title} per task`, draw: () => byTask(rows, tasks.names, scores),
      note: `Test ${scores.name}, mean over seeds; the stronger the colour, the higher. The highest of each task is bold.` },
    { id: "configuration", title: "Configuration", draw: () => configuration([["Settings", config], ["Machine", machine]]) },
  ].filter(Boolean));
}

function byTask(rows, names, scores) {
  const of = (row, task) => mean(Object.values(row.accuracies).map((seed) => seed[task]));
  const values = names.map((task) => rows.map((row) => of(row, task)));
  const strongest = values.map((own) => Math.max(...own)), all = values.flat(), low = Math.min(...all), high = Math.max(...all);
  return table({ label: `${scores.title} of each task`, rows: names, columns: [
    { title: "task", text: (task) => task, value: (task, i) => i },
    ...rows.map((row, j) => ({
      title: label(row),
      heat: (task, i) => (high > low ? (values[i][j] - low) / (high - low) : 0),
      text: (task, i) => (values[i][j] === strongest[i] ? h("b", {}, scores.text(values[i][j])) : scores.text(values[i][j])),
      value: (task, i) => values[i][j],
    })),
  ] });
}

const LIT = 3; // lines in colour at first

/* Small multiples of the same lines, with one legend: it colours lines, the rest are grey or hidden.
   A panel has a `title` and `lines`; `frame(width, lines, view)` makes its axes, `tip(line, point)`
   says what a point is, `rows(panel)` what the CSV holds. */
function multiples(panels, { label, frame, tip, rows }) {
  const list = grouped(panels.flatMap((one) => one.lines), (line) => line.name).map(([, same]) => same[0]);
  const height = (line) => mean(line.points.map(([, y]) => y));
  // The study's own method, then lines of more points than one, then the best.
  const order = [...list.slice(1)].sort((a, b) => b.points.length - a.points.length || height(b) - height(a));
  const lit = new Set([...list.slice(0, 1), ...order].slice(0, LIT).map((line) => line.name));
  let alone = false;
  const charts = panels.map((one) => chart(`${label}${one.title ? `, ${one.title}` : ""}`, (width, view) => {
    const coloured = one.lines.filter((line) => lit.has(line.name)).map((line) => ({ ...line, colour: shade(line.colour) }));
    const grey = alone ? [] : one.lines.filter((line) => !lit.has(line.name)).map((line) => ({ ...line, colour: "var(--faint)", faint: true }));
    const axis = frame(width, one.lines, view);
    lines(axis, [...grey, ...coloured], tip);
    return labels(axis, coloured);
  }, { title: one.title, data: () => rows(one) }));
  const redraw = () => charts.forEach((box) => box.redraw());
  const key = h("ul", { class: "legend" }, list.map((line) => h("li", {}, h("button", { type: "button", "aria-pressed": String(lit.has(line.name)), onclick: (event) => {
    if (!lit.delete(line.name)) lit.add(line.name);
    event.currentTarget.setAttribute("aria-pressed", lit.has(line.name));
    redraw();
  } }, sample({ ...line, colour: shade(line.colour) }), line.name))));
  const only = h("input", { type: "checkbox", onchange: () => { alone = only.checked; redraw(); } });
  return h("figure", {}, h("div", { class: "multiples" }, charts), key,
    list.length > LIT ? h("label", { class: "check" }, only, "Hide the grey ones; a press on a name colours it") : null);
}

/* The extent of lines with their deviations, and a margin. */
function extent(list) {
  const all = list.flatMap((line) => line.points.flatMap(([, y, sd]) => [y - (sd || 0), y + (sd || 0)]));
  const low = Math.min(...all), high = Math.max(...all), margin = 0.08 * (high - low || 0.01);
  return [low - margin, Math.min(high + margin, 1.005)];
}

const tall = (width) => Math.max(150, Math.min(340, width * 0.62));


/* Scores against trainable parameters ÷ N, a line a method; pictures of the same methods together. */
function budgets(pictures, scores = SCORES.accuracy) {
  const groups = [];
  for (const one of pictures.map(byMethod)) {
    const like = groups.at(-1)?.[0].lines.some((line) => one.lines.some((other) => other.name === line.name));
    if (like) groups.at(-1).push(one);
    else groups.push([one]);
  }
  return groups.map((group) => multiples(group, {
    label: `${scores.title} against trainable parameters`,
    tip: (line, [x, y, sd, method]) => `${method}: ${scores.text(y)}${sd ? ` ± ${scores.sd(sd)}` : ""} at ${fixed(x)} N`,
    rows: ({ lines: list }) => [["method", "trainable parameters / N", scores.name, "standard deviation"],
      ...list.flatMap((line) => line.points.map(([x, y, sd, method]) => [method, x, y, sd]))],
    frame: (width, list, view) => {
      const ratios = list.flatMap((line) => line.points.map(([x]) => x));
      return axes({ width, height: tall(width), left: 52, view, x: { domain: [Math.min(...ratios) / 1.3, Math.max(...ratios) * 1.3], log: true, format: number, title: "trainable parameters ÷ N" },
        y: { domain: extent(list), format: scores.axis } });
    },
  }));
}

function byMethod({ title, rows }) {
  const methods = new Map();
  for (const row of rows) {
    const [name] = rows.length > 8 && row.method.includes(" N") ? row.method.split(",") : [row.method];
    if (!methods.has(name)) methods.set(name, { name, colour: row.colour, marker: row.marker, points: [] });
    methods.get(name).points.push([row.ratio, row.mean, row.sd, row.method]);
  }
  for (const line of methods.values()) line.points.sort((a, b) => a[0] - b[0]);
  return { title, lines: [...methods.values()] };
}

function shots({ shots: names, families }) {
  const panels = families.map(({ name, lines: list }) => ({ title: name,
    lines: list.map((line) => ({ ...line, name: line.method, points: line.mean.map((value, x) => [x, value, line.sd[x]]) })) }));
  return multiples(panels, {
    label: "Accuracy on new tasks",
    tip: (line, [x, y, sd]) => `${line.name}, ${names[x]}: ${percent(y)} ± ${fixed(100 * sd)}`,
    rows: ({ lines: list }) => [["method", "images per class", "accuracy", "standard deviation"],
      ...list.flatMap((line) => line.points.map(([x, y, sd]) => [line.name, names[x], y, sd]))],
    frame: (width, list, view) => axes({ width, height: tall(width), left: 52, view,
      x: { domain: [-0.2, names.length - 0.8], ticks: range(names.length), format: (x) => names[x], title: "images per class" },
      y: { domain: extent(list), format: inPercent } }),
  });
}

const shotsOf = (shots) => (shots === null ? "all" : shots === undefined ? "–" : String(shots));

function studyPanel(index, { name, question, method, config, machine, command, seconds, claims, tables, by_shots: byShots, by_budget: byBudget, picture }) {
  const verdicts = Object.keys(VERDICTS).map((verdict) => claims.filter((claim) => claim.verdict === verdict).length);
  const lead = ["Study", config.seeds && `${config.seeds} seeds`, machine.cpu, `${number(Math.round(seconds / 60))} minutes of one core`, command].filter(Boolean).join(" · ");
  return panel(index, name, lead, [], [
    { id: "question", title: "Question", draw: () => [h("p", {}, question), folded("How it was measured", h("p", { class: "note" }, method))] },
    (claims.length || byBudget.length) && { id: "glance", title: "At a glance", draw: () => [tiles([
      claims.length && ["claims supported", verdicts[0], `of ${claims.length}`, true],
      claims.length && ["not supported", verdicts[1], "the difference is below zero"],
      claims.length && ["undecided", verdicts[2], "the interval contains zero"],
      ...(claims.length ? [] : byBudget.slice(0, 1)).flatMap(({ title, rows }) => [...rows].sort((a, b) => b.mean - a.mean).slice(0, 3).map((row, i) => [row.method, `${percent(row.mean)}`, `± ${fixed(100 * row.sd)}, ${fixed(row.ratio)} N trainable${title ? `; ${title}` : ""}`, i === 0])),
    ]), ...(claims.length ? findings(claims) : [])] },
    claims.length && { id: "claims", title: "Verdict on each claim", draw: () => verdictsOf(claims),
      note: "A claim is that a difference in accuracy, in points, is above zero. ▲ supported: the whole 95% interval lies above zero. ▼ not supported: it lies below. ○ undecided: it contains zero. Every chart has a scale of its own." },
    byShots && { id: "shots", title: "Accuracy on new tasks", draw: () => shots(byShots),
      note: "Mean accuracy on held-out tasks, and its standard deviation over seeds, by the number of images per class." },
    byBudget.length && { id: "budget", title: "Accuracy against budget", draw: () => budgets(byBudget),
      note: "Mean test accuracy and its standard deviation over seeds, against trainable parameters ÷ those of one target, N." },
    picture && { id: "picture", title: "In a picture", note: "The tables below have the numbers.",
      draw: () => scroll("Picture", h("img", { src: picture, alt: `What the study found: ${name}; the tables below have the numbers` })) },
    tables.length && { id: "figures", title: "All figures", draw: () => tables.map((one) => folded(one[0], saving(one), texts(one))) },
    { id: "configuration", title: "Configuration", draw: () => configuration([["Settings", config], ["Machine", { command, ...machine }]]) },
  ].filter(Boolean));
}

const saving = ([title, columns, rows]) => h("button", { type: "button", class: "tool", "aria-label": `Save as CSV: ${title}`, onclick: () => saveRows(`${title}.csv`, [columns, ...rows]) }, "CSV");
