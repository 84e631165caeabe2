// Comparisons of methods, and studies with their claims.

const label = (row) => `${row.method}${row.budget === null ? "" : `, ${row.budget} N`}`;

function comparisonPanel(index, { name, config, machine, results, tables, by_budget }) {
  const { rows, tasks, numel, skipped, failures } = results;
  const best = rows.reduce((a, b) => (a && a.accuracy.mean >= b.accuracy.mean ? a : b), null);
  const spread = ({ accuracy: { sd } }) => (sd === null ? "" : `, ±\u00a0${fixed(100 * sd)}`);
  const source = config.data.source.split(/[\\/]/).pop();
  const lead = ["Comparison", plural(tasks.names.length, "task"), [source, config.data.tasks].filter(Boolean).join(" "), `target ${config.target}`].join(" · ");
  const problems = [
    ...skipped.map((row) => `Left out: ${row.method} at ${row.budget} N. ${row.reason}`),
    ...failures.map((row) => `Failed: ${row.method}, seed ${row.seed}. ${row.error}`),
  ];
  return panel(index, name, lead, problems, [
    { id: "glance", title: "At a glance", draw: () => tiles([
      best && ["best mean test accuracy", percent(best.accuracy.mean), `${label(best)}${spread(best)}`, true],
      ...rows.filter((row) => row !== best).map((row) =>
        [label(row), percent(row.accuracy.mean), `${fixed(row.parameters_per_target_parameter)} N trainable${spread(row)}`]),
      ["seeds", config.seeds.length, "of each method"],
      ["one target, N", count(numel), "parameters"],
    ]) },
    rows.length && { id: "budget", title: "Accuracy against budget", draw: () => [budget(by_budget[0]), ...tables.map((one) => texts(one))],
      note: "Mean test accuracy over tasks, and its standard deviation over seeds, against all trainable parameters." },
    rows.length && { id: "tasks", title: "Accuracy per task", draw: () => byTask(rows, tasks.names),
      note: "Test accuracy, mean over seeds; the stronger the colour, the higher. The highest of each task is bold." },
    { id: "configuration", title: "Configuration", draw: () => configuration([["Settings", config], ["Machine", machine]]) },
  ].filter(Boolean));
}

function byTask(rows, names) {
  const of = (row, task) => mean(Object.values(row.accuracies).map((seed) => seed[task]));
  const values = names.map((task) => rows.map((row) => of(row, task)));
  const strongest = values.map((own) => Math.max(...own)), all = values.flat(), low = Math.min(...all), high = Math.max(...all);
  return table({ label: "Accuracy per task", rows: names, columns: [
    { title: "task", text: (task) => task, value: (task, i) => i },
    ...rows.map((row, j) => ({
      title: label(row),
      heat: (task, i) => (high > low ? (values[i][j] - low) / (high - low) : 0),
      text: (task, i) => (values[i][j] === strongest[i] ? h("b", {}, percent(values[i][j])) : percent(values[i][j])),
      value: (task, i) => values[i][j],
    })),
  ] });
}

/* Accuracy against trainable parameters ÷ N, a line a method. */
function budget({ title, rows }) {
  const methods = new Map();
  for (const row of rows) {
    const [name] = rows.length > 8 && row.method.includes(" N") ? row.method.split(",") : [row.method];
    if (!methods.has(name)) methods.set(name, { name, colour: shade(row.colour), marker: row.marker, points: [] });
    methods.get(name).points.push([row.ratio, row.mean, row.sd, row.method]);
  }
  const list = [...methods.values()];
  for (const line of list) line.points.sort((a, b) => a[0] - b[0]);
  const ratios = rows.map((row) => row.ratio), low = Math.min(...rows.map((row) => row.mean - (row.sd || 0))), high = Math.max(...rows.map((row) => row.mean + (row.sd || 0)));
  const margin = 0.08 * (high - low || 0.01);
  return h("figure", {}, title ? h("h4", {}, title) : null, chart(`Accuracy against trainable parameters. ${title}; the table has the numbers`, (width) => {
    const frame = axes({ width, height: 340, left: 52, x: { domain: [Math.min(...ratios) / 1.3, Math.max(...ratios) * 1.3], log: true, format: number, title: "trainable parameters ÷ those of one target" },
      y: { domain: [low - margin, Math.min(high + margin, 1.005)], format: (v) => `${number(100 * v)}%`, title: "test accuracy" } });
    lines(frame, list, (line, [x, y, sd, method]) => `${method}: ${percent(y)}${sd ? ` ± ${fixed(100 * sd)}` : ""} at ${fixed(x)} N`);
    return labels(frame, list);
  }), list.length <= 10 ? legend(list) : null);
}

const VERDICTS = { supported: ["yes", "✓ supported"], "not supported": ["no", "✕ not supported"], undecided: ["open", "? undecided"] };
const shotsOf = (shots) => (shots === null ? "all" : shots === undefined ? "–" : String(shots));

function studyPanel(index, { name, question, method, config, machine, seconds, claims, tables, by_shots: byShots, by_budget: byBudget, picture }) {
  const verdicts = Object.keys(VERDICTS).map((verdict) => claims.filter((claim) => claim.verdict === verdict).length);
  const lead = ["Study", config.seeds && `${config.seeds} seeds`, machine.cpu, `${number(Math.round(seconds / 60))} minutes of one core`].filter(Boolean).join(" · ");
  return panel(index, name, lead, [], [
    { id: "question", title: "Question", draw: () => [h("p", {}, question), h("p", { class: "note" }, method)] },
    (claims.length || byBudget.length) && { id: "glance", title: "At a glance", draw: () => tiles([
      claims.length && ["claims supported", verdicts[0], `of ${claims.length}`, true],
      claims.length && ["not supported", verdicts[1], "the difference is below zero"],
      claims.length && ["undecided", verdicts[2], "the interval contains zero"],
      ...byBudget.slice(0, 1).flatMap(({ title, rows }) => [...rows].sort((a, b) => b.mean - a.mean).slice(0, 3).map((row, i) => [row.method, percent(row.mean), `${fixed(row.ratio)} N trainable${title ? `; ${title}` : ""}`, !claims.length && i === 0])),
    ]) },
    claims.length && { id: "claims", title: "Verdict on each claim", draw: () => verdictsOf(claims),
      note: "A claim is that a difference in accuracy, in points, is above zero. ✓ supported: the whole 95% interval lies above zero. ✕ not supported: it lies below. ? undecided: it contains zero." + (byShots ? " Columns are numbers of images per class." : "") },
    byShots && { id: "shots", title: "Accuracy on new tasks", draw: () => shots(byShots),
      note: "Mean accuracy on held-out tasks, and its standard deviation over seeds, by the number of images per class." },
    byBudget.length && { id: "budget", title: "Accuracy against budget", draw: () => byBudget.map(budget) },
    picture && { id: "picture", title: "In a picture", note: "The tables below have the numbers.",
      draw: () => scroll("Picture", h("img", { src: picture, alt: `What the study found: ${name}; the tables below have the numbers` })) },
    tables.length && { id: "figures", title: "All figures", draw: () => tables.flatMap((one) => [h("h4", {}, one[0]), texts(one)]) },
    { id: "configuration", title: "Configuration", draw: () => configuration([["Settings", config], ["Machine", machine]]) },
  ].filter(Boolean));
}

/* All verdicts at once, then the intervals of a family; of claims without numbers of images, all in one table. */
function verdictsOf(claims) {
  if (claims.every((claim) => claim.shots === undefined)) return intervals("Verdicts", claims, [
    { title: "where", text: (claim) => claim.family },
    { title: "difference", left: true, text: (claim) => claim.claim },
  ]);
  const families = [...new Set(claims.map((claim) => claim.family))].map((name) => [name, claims.filter((claim) => claim.family === name)]);
  const overview = families.flatMap(([family, own]) => {
    const columns = [...new Set(own.map(column))];
    return [h("h4", {}, family), table({ label: `Verdicts, ${family}`, rows: [...new Set(own.map((claim) => claim.claim))], columns: [
      { title: "difference", text: (name) => name },
      ...columns.map((title) => ({ title, text: (name) => {
        const claim = own.find((one) => one.claim === name && column(one) === title);
        return claim ? h("span", { class: `verdict ${kind(claim)}`, "data-tip": `${claim.verdict}: ${interval(claim)}` }, `${VERDICTS[claim.verdict]?.[1][0] ?? ""} ${points(claim.mean)}`) : "–";
      } })),
    ] })];
  });
  const place = h("div");
  const show = (i) => place.replaceChildren(...verdictTables(...families[i]));
  show(0);
  return [...overview, h("h4", {}, "Intervals"), h("div", { class: "controls" }, choice("Tasks", families.map(([name], i) => [i, name]), 0, show).field), place];
}

const kind = (claim) => VERDICTS[claim.verdict]?.[0] ?? "open";
const column = ({ shots }) => (String(shots).startsWith("mean") ? "mean" : shotsOf(shots));
const interval = ({ low, high }) => (low === null ? "no interval with one seed" : `${points(low)} to ${points(high)}`);

function verdictTables(family, claims) {
  return [...new Set(claims.map((claim) => claim.claim))].map((name) =>
    intervals(`${name}, ${family}`, claims.filter((claim) => claim.claim === name), [{ title: name, text: (claim) => shotsOf(claim.shots) }], claims));
}

/* A table of claims with their intervals as pictures, on the scale of all that are `beside` them. */
function intervals(label, claims, columns, beside = claims) {
  const ends = beside.flatMap(({ mean, low, high }) => [mean, low, high]).filter((x) => x !== null);
  const most = Math.max(...ends.map(Math.abs)) * 1.05 || 1, x = (value) => 100 + (100 * value) / most;
  const picture = (claim) => {
    const { mean, low, high } = claim, colour = { yes: "var(--good)", no: ORANGE, open: "var(--muted)" }[kind(claim)];
    return s("svg", { viewBox: "0 0 200 18", height: 18, preserveAspectRatio: "none", "aria-hidden": "true" },
      s("line", { x1: 100, x2: 100, y1: 0, y2: 18, stroke: "var(--muted)" }),
      low === null ? null : s("line", { x1: x(low), x2: x(high), y1: 9, y2: 9, stroke: colour, "stroke-width": 4, "stroke-opacity": 0.45 }),
      s("line", { x1: x(mean), x2: x(mean), y1: 3, y2: 15, stroke: colour, "stroke-width": 3 }));
  };
  const scale = fixed(100 * most);
  const list = table({ label, rows: claims, columns: [
    ...columns,
    { title: `−${scale} to +${scale}`, text: picture, class: "interval" },
    { title: "points", text: (claim) => points(claim.mean) },
    { title: "verdict", left: true, text: (claim) => h("span", { class: `verdict ${kind(claim)}` }, VERDICTS[claim.verdict]?.[1] ?? claim.verdict) },
    { title: "95% interval", text: interval },
  ] });
  list.classList.add("whole");
  return list;
}

function shots({ shots: names, families }) {
  const place = h("div");
  const show = (i) => {
    const list = families[i].lines.map((line) => ({ ...line, name: line.method, colour: shade(line.colour), points: line.mean.map((mean, x) => [x, mean, line.sd[x]]) }));
    const all = list.flatMap((line) => line.points.flatMap(([, y, sd]) => [y - sd, y + sd])), low = Math.min(...all), high = Math.max(...all);
    place.replaceChildren(chart(`Accuracy on new tasks, ${families[i].name}; the tables below have the numbers`, (width) =>
      lines(axes({ width, height: 360, left: 52, x: { domain: [-0.2, names.length - 0.8], ticks: range(names.length), format: (x) => names[x], title: "images per class" },
        y: { domain: [Math.max(0, low - 0.03), Math.min(1.01, high + 0.03)], format: (v) => `${number(100 * v)}%` } }), list,
      (line, [x, y, sd]) => `${line.name}, ${names[x]}: ${percent(y)} ± ${fixed(100 * sd)}`)), legend(list));
  };
  show(0);
  return [h("div", { class: "controls" }, choice("Tasks", families.map(({ name }, i) => [i, name]), 0, show).field), place];
}
