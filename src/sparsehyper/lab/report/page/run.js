// A training run: its figures, its tasks, its learning curves and what its models confuse.

const SPLITS = { test: "test", val: "validation" };
const METHODS = { experts: "One target per task", shared_trunk: "A shared trunk, one head per task" };

function runPanel(index, run) {
  const { config, tasks, samples } = run, evaluated = run.evaluation !== null, scores = SCORES[run.score];
  const worst = evaluated ? tasks.findIndex((task) => task.name === run.evaluation.worst_task) : 0;
  run.task = shared(worst); // the task that pictures show
  const kind = config.method.kind, { resolved, ...settings } = config;
  const source = config.data.source.split(/[\\/]/).pop();
  const lead = [METHODS[kind] || `${kind[0].toUpperCase()}${kind.slice(1).replace("_", " ")} generator`,
    plural(tasks.length, "task"), [source, config.data.tasks].filter(Boolean).join(" "), `target ${config.target}`, run.made && run.made.date, run.made && run.made.machine && run.made.machine.cpu].filter(Boolean).join(" · ");
  const where = SPLITS[run.split];
  const unfinished = run.split === "val" && evaluated && `This run has not finished: all ${scores.several} are those of the best model so far, on the validation ${samples}.`;
  return panel(index, run.name, lead, [unfinished, run.missing], [
    { id: "glance", title: "At a glance", draw: () => glance(run, where) },
    { id: "tasks", title: evaluated ? `${scores.title} per task` : "Tasks", draw: () => perTask(run, where),
      note: evaluated && (scores.share ? `The share of each task's ${where} ${samples} that is classified correctly, with Wilson's 95% interval for that many ${samples}.`
        : `1 − mean squared error on each task's ${where} ${samples} ÷ variance of the training ${samples} within tasks: 1 without errors, and 0 on average where every prediction is its task's mean.`) },
    run.curves.validation.step.length && { id: "curves", title: "Learning curves", draw: () => learning(run) },
    run.confusion && { id: "confusion", title: "Confusion matrices", draw: () => confusion(run, where),
      note: "Rows are true classes, columns are predicted ones. Blue is right, orange is wrong." },
    run.map && tasks.length > 1 && { id: "map", title: "Map of the tasks", draw: () => taskMap(run),
      note: "Each task's embedding, in the plane in which embeddings differ most. Tasks that lie close to each other have similar models." },
    run.distances && tasks.length > 1 && { id: "distances", title: "Distances between tasks", draw: () => taskDistances(run),
      note: "Cosine distance between embeddings, as the generator sees them: 0 for the same, 1 for unrelated ones, 2 for opposite ones." },
    run.interpolation && { id: "between", title: "Between two tasks", draw: () => between(run, where),
      note: "Models on the line from one task's embedding to another's, and their accuracy on both tasks." },
    run.filters && { id: "filters", title: "First-layer filters", draw: () => filters(run) },
    run.layers && { id: "layers", title: "Generated layers", draw: () => layers(run),
      note: "Distribution of the weights of each tensor, and how much of their standard deviation lies between tasks: at 0% they are the same for all tasks." },
    run.wiring && { id: "wiring", title: "Wiring of the generator", draw: () => wiring(run),
      note: "What one generated number depends on: from the embedding on the left, through layers that grow, to the output on the right." },
    { id: "configuration", title: "Configuration", draw: () => configuration([
      ["Settings", settings], ["What follows from them", resolved], ["Versions", run.versions], ["How it was made", run.made && run.made.machine && run.made]]) },
  ].filter(Boolean));
}

/* Wilson's 95% interval of a share of n images. */
function wilson(share, n) {
  const z = 1.959964 ** 2 / n, middle = (share + z / 2) / (1 + z), half = Math.sqrt(z * share * (1 - share) + (z * z) / 4) / (1 + z);
  return [Math.max(0, middle - half), Math.min(1, middle + half)];
}

const certain = (run, task) => (SCORES[run.score].share && task.images ? wilson(task.accuracy, task.images) : null);
const fromTo = (both) => (both ? both.map(percent).join(" to ") : "–");

function glance(run, where) {
  const { evaluation, config, training, tasks } = run, { numel, trainable_parameters: trainable } = config.resolved, scores = SCORES[run.score];
  const lowest = evaluation && tasks.find((task) => task.name === evaluation.worst_task);
  const images = scores.share && tasks.reduce((sum, task) => sum + (task.images || 0), 0); // of all tasks together
  return tiles([
    evaluation && [`mean ${where} ${scores.name}`, scores.text(evaluation.accuracy), `over ${plural(tasks.length, "task")}${images ? `; ${fromTo(wilson(evaluation.accuracy, images))}` : ""}`, true],
    evaluation && tasks.length > 1 && ["lowest task", scores.text(evaluation.worst_accuracy), `${evaluation.worst_task}${images ? `; ${fromTo(certain(run, lowest))}` : ""}`],
    !evaluation && ["tasks", count(tasks.length), `${tasks.filter((t) => t.origin !== "trained").length} added after training`, true],
    ["trainable parameters", count(trainable), `${fixed(trainable / numel)} × one target`],
    ["one target, N", count(numel), "parameters"],
    training && ["updates", count(training.steps), `best after ${count(training.best_step)}`],
    training && training.step_ms !== null && ["an update", `${number(training.step_ms)} ms`, `${number(training.seconds)} s in all`],
  ]);
}

const link = (run, i) => h("button", { type: "button", class: "link", onclick: () => run.task.set(i) }, run.tasks[i].name);

/* The choice of the task, the same one in every picture. */
function taskChoice(run) {
  const { select, field } = choice("Task", run.tasks.map((task, i) => [i, task.name]), run.task.value, (i) => run.task.set(i));
  run.task.listen((i) => { select.value = i; });
  return field;
}

function about(run, task) {
  const interval = certain(run, task);
  return task.accuracy === null ? task.name : `${task.name}: ${SCORES[run.score].text(task.accuracy)}${interval ? ` (${fromTo(interval)})` : ""}`;
}

/* What was measured when a task was added to a run. */
const measure = (title, key, show) => ({ title,
  text: ({ measured }) => (measured && measured[key] !== null ? show(measured[key], measured) : "–"),
  value: ({ measured }) => (measured && measured[key] !== null ? measured[key] : -Infinity) });
const expected = ({ name, text }) => measure(`expected ${name}`, "expected",
  (value, { interval }) => `${text(value)}${interval ? ` (${interval.map(text).join(" to ")})` : ""}`);
const reasons = ({ measured }) => (measured && measured.why ? [measured.why, ...measured.warnings].join(" ") : "–");
/* Of numbers, only what some task has: errors are in the target's own unit. */
const learned = (tasks, samples, scores) => {
  const { name, text, share } = scores, unit = (value) => minus(number(value));
  const some = (key, column) => tasks.some(({ measured }) => measured && measured[key] !== null) && column;
  return [measure(`learned from ${samples}`, "images", count), measure(`${name} on them`, "accuracy", text), some("error", measure("typical error on them", "error", unit)),
    share ? expected(scores) : some("expected", expected(scores)), some("expected_error", measure("expected typical error", "expected_error", unit)),
    measure(`test ${samples}`, "test_images", count), measure(`test ${name}`, "test_accuracy", text)];
};

function perTask(run, where) {
  const { tasks, samples } = run, evaluated = run.evaluation !== null, scores = SCORES[run.score];
  const nearest = (task) => (task.nearest === null ? "–" : tasks[task.nearest].name);
  const columns = [
    { title: "task", text: (task, i) => link(run, i), value: (task, i) => i },
    evaluated && { title: scores.name, text: (task) => scores.text(task.accuracy), value: (task) => task.accuracy, bar: (task) => task.accuracy },
    evaluated && scores.share && tasks[0].images && { title: "95% interval", text: (task) => fromTo(certain(run, task)) },
    evaluated && { title: scores.loss, text: (task) => task.loss.toFixed(4), value: (task) => task.loss },
    tasks.some((task) => task.entropy !== null) && { title: "entropy", text: (task) => (task.entropy === null ? "–" : task.entropy.toFixed(4)), value: (task) => task.entropy },
    evaluated && tasks[0].images && { title: `${where} ${samples}`, text: (task) => count(task.images), value: (task) => task.images },
    scores.share && { title: "classes", text: (task) => count(task.classes.length), value: (task) => task.classes.length },
    !evaluated && { title: "origin", text: (task) => task.origin, value: (task) => task.origin, left: true },
    ...(tasks.some((task) => task.measured) ? learned(tasks, samples, scores) : []),
    tasks.some((task) => task.measured?.why) && { title: "why", text: reasons, left: true },
    tasks[0].nearest !== null && { title: "nearest task", text: nearest, value: nearest, left: true },
  ].filter(Boolean);
  const lines = [];
  const list = table({ label: "Tasks", columns, rows: tasks, sorted: evaluated ? 1 : 0,
    row: (line, task, i) => { lines[i] = line; } });
  run.task.listen((i) => lines.forEach((line, j) => line.setAttribute("aria-selected", i === j)));
  const search = h("input", { type: "search", oninput: () => lines.forEach((line, i) => {
    line.hidden = !tasks[i].name.toLowerCase().includes(search.value.toLowerCase());
  }) });
  return [evaluated && tasks.length > 8 ? ranking(run) : null,
    tasks.length > 12 ? h("div", { class: "controls" }, field("Find a task", search)) : null, list];
}

function ranking(run) {
  const order = range(run.tasks.length).sort((a, b) => run.tasks[a].accuracy - run.tasks[b].accuracy);
  const scores = SCORES[run.score];
  const ends = (i) => certain(run, run.tasks[i]) || [run.tasks[i].accuracy, run.tasks[i].accuracy], all = order.flatMap(ends);
  const low = Math.min(...all), high = Math.max(...all);
  const average = run.evaluation.accuracy, margin = 0.05 * (high - low || 0.01);
  const box = chart(`${scores.title} of every task, lowest first; the table below has the numbers`, (width, view) => {
    const { svg, plot, px, py, left, right } = axes({ width, height: 220, left: 52, view,
      x: { domain: [1, order.length], title: "tasks, lowest first", ticks: [1, order.length] },
      y: { domain: [low - margin, high + margin], format: scores.axis } });
    const at = py(average), radius = order.length > 80 ? 3 : 4.5;
    plot.append(s("line", { x1: left, x2: right, y1: at, y2: at, stroke: ORANGE, "stroke-dasharray": "5 4" }),
      s("text", { x: right, y: at + 15, "text-anchor": "end", class: "strong" }, `mean ${scores.text(average)}`));
    order.forEach((i, rank) => {
      const x = px(rank + 1), [from, to] = ends(i).map(py);
      plot.append(s("line", { x1: x, x2: x, y1: from, y2: to, stroke: BLUE, "stroke-opacity": 0.5 }),
        s("circle", { cx: x, cy: py(run.tasks[i].accuracy), r: radius, fill: BLUE, class: i === run.task.value ? "pick hot" : "pick", "data-tip": about(run, run.tasks[i]), onclick: () => run.task.set(i) }));
    });
    return svg;
  }, { data: () => [["task", scores.name, ...(scores.share ? ["low", "high"] : []), scores.loss, run.samples],
    ...run.tasks.map((task) => [task.name, task.accuracy, ...(certain(run, task) || (scores.share ? ["", ""] : [])), task.loss, task.images])] });
  run.task.listen(() => box.redraw());
  return box;
}

function learning(run) {
  const { train, validation } = run.curves, last = Math.max(...validation.step, ...train.step), scores = SCORES[run.score];
  const zip = (columns, key) => columns.step.map((step, i) => [step, columns[key][i]]);
  const picture = (title, list, y) => {
    const values = list.flatMap((line) => line.points.map(([, value]) => value)), low = Math.min(...values), high = Math.max(...values);
    const margin = 0.05 * (high - low || 0.1 * Math.abs(high) || 0.1);
    // A loss of zero has no place on a log axis.
    const domain = y.log && low > 0 ? [low / 1.1, high * 1.1] : [Math.max(low < 0 ? -Infinity : 0, low - margin), high + margin];
    return h("figure", {}, chart(`${title}; the table below has the numbers`, (width, view) =>
      lines(axes({ width, height: 240, left: 52, view, x: { domain: [0, last], title: "updates", format: count }, y: { ...y, log: y.log && low > 0, domain } }), list,
        (line, [step, value]) => `${line.name}, after ${count(step)}: ${line.text(value)}`),
    { title, data: () => [["line", "updates", "value"], ...list.flatMap((line) => line.points.map((point) => [line.name, ...point]))] }), legend(list));
  };
  const shares = [
    { name: "mean of all tasks", colour: BLUE, points: zip(validation, "accuracy"), text: scores.text },
    { name: "lowest task", colour: ORANGE, points: zip(validation, "worst_accuracy"), marker: "s", dashed: true, text: scores.text },
  ].slice(0, run.tasks.length > 1 ? 2 : 1);
  const losses = [
    { name: "training", colour: ORANGE, points: zip(train, "loss"), text: number, dashed: true, marker: "s" },
    { name: "validation", colour: BLUE, points: zip(validation, "loss"), text: number },
  ].filter((line) => line.points.length);
  const numbers = texts(["Validation", ["updates", `mean ${scores.name}`, "lowest task", scores.loss], validation.step.map((step, i) =>
    [count(step), scores.text(validation.accuracy[i]), scores.text(validation.worst_accuracy[i]), validation.loss[i].toFixed(4)])]);
  return [h("div", { class: "pair" }, picture(`Validation ${scores.name}`, shares, { format: scores.axis }), picture(`${scores.losses}, on a log axis`, losses, { log: true, format: number })),
    folded("The numbers", numbers)];
}

function confusion(run, where) {
  const place = h("div");
  run.task.listen((i) => {
    const { name, classes, accuracy, images } = run.tasks[i], matrix = run.confusion.matrices[i];
    const totals = matrix.map((row) => row.reduce((a, b) => a + b, 0)), all = totals.reduce((a, b) => a + b, 0);
    const mistakes = matrix.flatMap((row, a) => row.map((n, b) => ({ a, b, n }))).filter(({ a, b, n }) => n && a !== b).sort((p, q) => q.n - p.n);
    const dense = classes.length > 20;
    const cells = h("table", { class: dense ? "confusion dense" : "confusion" },
      h("caption", { class: "unseen" }, `Confusion matrix of ${name}`),
      h("thead", {}, h("tr", {}, h("td"), classes.map((c) => h("th", { scope: "col", "data-tip": c.length > 8 && c }, c)))),
      h("tbody", {}, matrix.map((row, a) => h("tr", {}, h("th", { scope: "row" }, classes[a]), row.map((n, b) =>
        h("td", { class: a === b && "right", style: { "--share": totals[a] ? n / totals[a] : 0 },
          "data-tip": `${classes[a]} ${a === b ? "recognised" : `taken for ${classes[b]}`}: ${n} of ${totals[a]}` }, String(n)))))));
    const scope = all < images ? `${count(all)} of its ${count(images)} ${where} ${run.samples}` : `all its ${count(images)} ${where} ${run.samples}`;
    place.replaceChildren(h("div", { class: "split" }, h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `Confusion matrix of ${name}` }, cells),
      h("div", { class: "grow" }, h("p", {}, h("b", {}, `${name}: ${percent(accuracy)}`)), h("p", { class: "note" }, `Counted on ${scope}.`),
        h("h4", {}, mistakes.length ? "Most frequent mistakes" : "No mistakes"),
        h("ul", { class: "plain" }, mistakes.slice(0, 6).map(({ a, b, n }) => h("li", {}, `${classes[a]} taken for ${classes[b]}: ${n} of ${totals[a]}`))))));
  });
  return [h("div", { class: "controls" }, taskChoice(run)), place];
}
