// What a hypernetwork has learned: where its tasks lie, what lies between, what it generates.

function taskMap(run) {
  const { points, explained } = run.map, { tasks } = run, evaluated = run.evaluation !== null, scores = SCORES[run.score];
  const all = tasks.map((task) => task.accuracy), low = Math.min(...all), high = Math.max(...all);
  const colour = (i) => (evaluated ? `rgb(${viridis(high > low ? (all[i] - low) / (high - low) : 1)})` : BLUE);
  const bounds = (k) => {
    const values = points.map((point) => point[k]), a = Math.min(...values), b = Math.max(...values), margin = 0.08 * (b - a) || 1;
    return [a - margin, b + margin];
  };
  const said = h("p", { class: "note", role: "status" });
  const box = chart("Map of the task embeddings; tasks and their nearest ones are in the table of tasks", (width, view) => {
    const frame = axes({ width, view, height: Math.min(460, Math.max(280, width * 0.6)), left: 10,
      x: { domain: bounds(0), ticks: [], title: `first axis: ${percent(explained[0])} of the variance` },
      y: { domain: bounds(1), ticks: [], title: `second axis: ${percent(explained[1])}` } });
    const place = (i) => [frame.px(points[i][0]), frame.py(points[i][1])];
    const order = range(tasks.length).sort((a, b) => (a === run.task.value) - (b === run.task.value));
    const taken = [];
    for (const i of order) {
      const [x, y] = place(i), chosen = i === run.task.value;
      frame.plot.append(s("circle", { cx: x, cy: y, r: chosen ? 9 : 6.5, fill: colour(i), stroke: "var(--muted)", class: chosen ? "pick hot" : "pick",
        "data-tip": about(run, tasks[i]), onclick: () => run.task.set(i) }));
    }
    for (const i of order.reverse()) { // the chosen one's name first, others where there is room
      const [x, y] = place(i), text = tasks[i].name.length > 18 ? `${tasks[i].name.slice(0, 17)}…` : tasks[i].name, size = text.length * 6.7;
      const from = x + 11 + size > width ? x - 11 - size : x + 11;
      const free = taken.every(([a, b, w]) => Math.abs(b - y) > 13 || a > from + size || a + w < from)
        && (i === run.task.value || points.every((_, j) => j === i || Math.abs(place(j)[1] - y) > 12 || place(j)[0] < from - 7 || place(j)[0] > from + size + 7));
      if (!free) continue;
      taken.push([from, y, size]);
      frame.plot.append(s("text", { x: from, y: y + 4, class: i === run.task.value && "strong" }, text));
    }
    return frame.svg;
  }, { data: () => [["task", "first axis", "second axis", scores.name, "nearest task"],
    ...tasks.map((task, i) => [task.name, ...points[i], task.accuracy, tasks[task.nearest].name]).slice(0, points.length)] });
  run.task.listen((i) => {
    const task = tasks[i];
    said.textContent = `${about(run, task)}. Its nearest task is ${tasks[task.nearest].name}, at a cosine distance of ${number(task.distance)}.`;
    box.redraw();
  });
  return [h("div", { class: "controls" }, taskChoice(run)), box,
    evaluated ? h("div", {}, ramp(scores.text(low), scores.text(high), viridis)) : null, said, h("p", { class: "note" }, trust(points, tasks, explained))];
}

/* What near means in the plane, which is not the space of the embeddings. */
function trust(points, tasks, explained) {
  const apart = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]);
  const kept = points.filter((own, i) => points.every((other, j) => j === i || apart(own, other) >= apart(own, points[tasks[i].nearest]))).length;
  const shown = `The plane has ${percent(explained[0] + explained[1])} of the variance; for ${kept} of ${points.length} tasks the nearest point is the nearest task.`;
  return kept < points.length / 2 ? `Near means little here: go by the distances between tasks instead. ${shown}` : shown;
}

/* From a task to the nearest that has not been met, so that like ones stand together. */
function byLikeness(values) {
  const left = new Set(range(values.length)), order = [];
  for (let now = 0; left.size; ) {
    order.push(now);
    left.delete(now);
    let next = null;
    for (const j of left) if (next === null || values[now][j] < values[now][next]) next = j;
    now = next;
  }
  return order;
}

// So few that every distance can be written.
const FEW = 10;

function distanceTable(run, { values, tasks: numbers }) {
  const name = (i) => run.tasks[numbers[i]].name, most = Math.max(...values.flat()) || 1;
  return table({ label: "Numbers of the distances", rows: numbers, columns: [
    { title: "task", text: (_, i) => link(run, numbers[i]) },
    ...numbers.map((_, j) => ({ title: name(j), text: (_, i) => values[i][j].toFixed(3), heat: (_, i) => 1 - values[i][j] / most })),
  ] });
}

function taskDistances(run) {
  if (run.distances.tasks.length <= FEW) return distanceTable(run, run.distances);
  const { values, tasks: numbers } = run.distances, n = numbers.length;
  const alike = byLikeness(values), given = range(n), most = Math.max(...values.map((row) => Math.max(...row))) || 1;
  let order = alike;
  const name = (place) => run.tasks[numbers[order[place]]].name;
  const canvas = h("canvas", { class: "pointer", role: "img", "aria-label": "Distances between tasks; the list beside has those of the chosen task" });
  const nearest = h("div", { class: "grow" });
  const cell = Math.max(3, Math.floor(560 / n));
  const draw = () => {
    canvas.width = canvas.height = n * cell;
    const context = canvas.getContext("2d");
    order.forEach((i, row) => order.forEach((j, column) => {
      context.fillStyle = `rgb(${viridis(1 - values[i][j] / most)})`;
      context.fillRect(column * cell, row * cell, cell, cell);
    }));
    const chosen = order.indexOf(numbers.indexOf(run.task.value));
    if (chosen < 0) return;
    context.strokeStyle = "#ff5a36";
    context.lineWidth = Math.max(2, cell / 8);
    context.strokeRect(0, chosen * cell, n * cell, cell);
  };
  const under = (event) => {
    const box = canvas.getBoundingClientRect(), place = (at, size) => Math.max(0, Math.min(n - 1, Math.floor((at / size) * n)));
    return [place(event.clientY - box.top, box.height), place(event.clientX - box.left, box.width)];
  };
  canvas.addEventListener("pointermove", (event) => {
    const [row, column] = under(event);
    showTip(`${name(row)} – ${name(column)}: ${number(values[order[row]][order[column]])}`, event);
  });
  canvas.addEventListener("click", (event) => run.task.set(numbers[order[under(event)[0]]]));
  const list = (title, found) => h("div", {}, h("h4", {}, title), h("ol", { class: "plain" }, found.map(([i, distance]) =>
    h("li", {}, link(run, numbers[i]), ` ${distance.toFixed(3)}`))));
  run.task.listen((task) => {
    draw();
    const own = numbers.indexOf(task);
    if (own < 0) return nearest.replaceChildren(h("p", { class: "note" }, `${run.tasks[task].name} is not among these ${n} tasks.`));
    const found = values[own].map((distance, i) => [i, distance]).filter(([i]) => i !== own).sort((a, b) => a[1] - b[1]);
    nearest.replaceChildren(h("p", {}, h("b", {}, about(run, run.tasks[task]))), list("Nearest", found.slice(0, 5)), n > 10 ? list("Farthest", found.slice(-5).reverse()) : "");
  });
  const sort = choice("Order", [[0, "alike ones together"], [1, "as trained"]], 0, (way) => { order = way ? given : alike; draw(); });
  const fewer = n < run.tasks.length ? h("p", { class: "note" }, `${n} of the ${count(run.tasks.length)} tasks, evenly spread.`) : null;
  return [h("div", { class: "controls" }, taskChoice(run), sort.field), fewer,
    h("div", { class: "split" }, h("div", {}, canvas, ramp(number(most), "0", viridis)), nearest)];
}

function between(run, where) {
  const { tasks: chosen, positions, pairs, images } = run.interpolation, { tasks } = run, end = positions.length - 1;
  let [a, b] = chosen, at = 0;
  const names = (without) => chosen.filter((i) => i !== without).map((i) => [i, tasks[i].name]);
  const fillWith = (select, options, value) => {
    select.replaceChildren(...options.map(([key, text]) => h("option", { value: key }, text)));
    select.value = value;
  };
  const from = choice("From", names(b), a, (i) => { a = i; update(); });
  const to = choice("To", names(a), b, (i) => { b = i; update(); });
  const slider = h("input", { type: "range", min: 0, max: end, step: 1, value: 0, oninput: () => { at = Number(slider.value); update(); } });
  const readout = h("output", { class: "readout" }), numbers = h("div");
  const curves = () => {
    const pair = pairs.find((p) => (p.a === a && p.b === b) || (p.a === b && p.b === a));
    const turn = (values) => (pair.a === a ? values : [...values].reverse());
    return [[a, pair.a === a ? pair.of_a : pair.of_b, BLUE, "o"], [b, pair.a === a ? pair.of_b : pair.of_a, ORANGE, "s"]]
      .map(([task, values, colour, marker]) => ({ name: tasks[task].name, values: turn(values), colour, marker, dashed: colour === ORANGE }));
  };
  const key = h("div");
  const box = chart("Accuracy on both tasks along the way; the table below has the numbers", (width, view) => {
    const list = curves().map((line) => ({ ...line, points: line.values.map((v, i) => [positions[i], v]) }));
    const frame = axes({ width, height: 260, left: 52, view, x: { domain: [0, 1], format: (v) => `${Math.round(100 * v)}%`, title: "of the way" },
      y: { domain: [0, 1.02], format: (v) => `${Math.round(100 * v)}%`, ticks: [0, 0.25, 0.5, 0.75, 1] } });
    const x = frame.px(positions[at]);
    frame.plot.append(s("line", { x1: x, x2: x, y1: frame.top, y2: frame.bottom, stroke: "var(--ink)", "stroke-width": 2 }));
    return lines(frame, list, (line, [position, value]) => `${line.name}, ${Math.round(100 * position)}% of the way: ${percent(value)}`);
  }, { data: () => [["of the way", ...curves().map((line) => line.name)], ...positions.map((position, i) => [position, ...curves().map((line) => line.values[i])])] });
  function update() {
    fillWith(from.select, names(b), a);
    fillWith(to.select, names(a), b);
    const both = curves(), way = `${Math.round(100 * positions[at])}% of the way`;
    slider.setAttribute("aria-valuetext", `${way}: ${both.map((line) => `${line.name} ${percent(line.values[at])}`).join(", ")}`);
    readout.replaceChildren(...both.map((line) => h("p", { style: { "border-left-color": line.colour } }, `on ${line.name}`, h("b", {}, percent(line.values[at])), way)));
    numbers.replaceChildren(texts(["Accuracy along the way", ["of the way", ...both.map((line) => line.name)],
      positions.map((position, i) => [`${Math.round(100 * position)}%`, ...both.map((line) => percent(line.values[i]))])]));
    key.replaceChildren(legend(both));
    box.redraw();
  }
  update();
  const some = chosen.length < tasks.length ? ` To choose from: the lowest and the best task, and those least like them.` : "";
  const means = run.interpolation.mean_statistics ? " Batch norms have the mean statistics of all tasks on the whole way." : "";
  return [h("div", { class: "controls" }, from.field, to.field, field("Position between them", slider, true)), readout, box, key,
    h("p", { class: "note" }, `On up to ${count(images)} ${where} ${run.samples} of each task.${some}${means}`),
    folded("The numbers", numbers)];
}

function filters(run) {
  const { tensor, shape: [n, channels, height, width], rows } = run.filters, size = height * width;
  const draw = (values, from) => {
    const canvas = h("canvas", { width, height });
    const context = canvas.getContext("2d"), image = context.createImageData(width, height);
    for (const p of range(size)) {
      const at = (c) => values[from + c * size + p] / 127;
      // One channel: orange below zero, blue above. Three: as colours around grey.
      const v = at(0), towards = v < 0 ? [213, 94, 0] : [0, 114, 178];
      const rgb = channels === 3 ? range(3).map((c) => 127 + 127 * at(c)) : towards.map((c) => 247 + Math.abs(v) * (c - 247));
      image.data.set([...rgb, 255], 4 * p);
    }
    context.putImageData(image, 0, 0);
    return canvas;
  };
  const strips = rows.map(({ task, pixels }) => {
    const values = Int8Array.from(atob(pixels), (c) => c.charCodeAt(0)), name = task === null ? "all tasks" : run.tasks[task].name;
    return h("div", { class: "strip" }, h("span", {}, name),
      h("div", { role: "img", "aria-label": `${plural(n, "filter")} of ${name}` }, range(n).map((i) => draw(values, i * channels * size))));
  });
  const colours = channels === 3 ? "Grey is zero." : "White is zero, blue above, orange below.";
  return [h("p", { class: "note" }, `The first ${n} of ${tensor}, the same ones for ${rows.length > 1 ? "each of some tasks" : "all"}. ${colours}`), h("div", { class: "strips" }, strips)];
}

function layers(run) {
  return table({ label: "Generated tensors", rows: run.layers, columns: [
    { title: "tensor", text: (row) => row.name, value: (row) => run.layers.indexOf(row) },
    { title: "shape", text: (row) => row.shape.join(" × ") || "1" },
    { title: "std between tasks", text: (row) => percent(row.between_tasks), value: (row) => row.between_tasks, bar: (row) => row.between_tasks },
    { title: "std", text: (row) => number(row.std), value: (row) => row.std },
    { title: "std at the start", text: (row) => number(row.initial_std), value: (row) => row.initial_std },
    { title: "mean", text: (row) => number(row.mean), value: (row) => row.mean },
    { title: "distance of two tasks", text: (row) => number(row.distance), value: (row) => row.distance },
  ] });
}

function wiring(run) {
  const { sizes, fan_ins: fanIns, topology, traces } = run.wiring, { wiring: reach } = run.summary;
  let trace = traces[0];
  const said = h("div");
  const box = chart("Connections from the embedding to one generated number; the table below has the numbers", (width) => {
    const height = 330, top = 12, bottom = height - 34, n = sizes.length, logs = sizes.map((size) => Math.log(size + 1)), most = Math.max(...logs);
    const svg = s("svg", { width, height, viewBox: `0 0 ${width} ${height}` });
    const x = (layer) => 16 + (layer * (width - 40)) / (n - 1 || 1);
    const tall = (layer) => (bottom - top) * (0.25 + (0.75 * logs[layer]) / most);
    const y = (layer, unit) => (top + bottom - tall(layer)) / 2 + (tall(layer) * (unit + 0.5)) / sizes[layer];
    const dots = range(n).map(() => new Set());
    trace.connections.forEach((connections, layer) => {
      const alpha = Math.max(0.12, Math.min(0.9, 12 / connections.length)), middle = (x(layer) + x(layer + 1)) / 2;
      const curves = connections.map(([source, unit]) => {
        dots[layer].add(source);
        dots[layer + 1].add(unit);
        return `M${x(layer).toFixed(1)},${y(layer, source).toFixed(1)}C${middle.toFixed(1)},${y(layer, source).toFixed(1)} ${middle.toFixed(1)},${y(layer + 1, unit).toFixed(1)} ${x(layer + 1).toFixed(1)},${y(layer + 1, unit).toFixed(1)}`;
      });
      for (const d of curves) svg.append(s("path", { d, fill: "none", stroke: BLUE, "stroke-opacity": alpha, "stroke-width": 1.2 }));
    });
    const step = Math.ceil((n * 46) / width);
    sizes.forEach((size, layer) => {
      const reached = layer === n - 1 ? 1 : trace.reached[layer];
      svg.append(s("rect", { x: x(layer) - 2.5, y: (top + bottom - tall(layer)) / 2, width: 5, height: tall(layer), rx: 2.5, fill: "var(--line)",
        "data-tip": `${count(size)} units, of which ${count(reached)} matter here` }));
      for (const unit of dots[layer]) svg.append(s("circle", { cx: x(layer), cy: y(layer, unit), r: layer === n - 1 ? 5 : 2.4, fill: layer === n - 1 ? ORANGE : BLUE }));
      if ((n - 1 - layer) % step === 0) svg.append(s("text", { x: Math.min(x(layer), width - 4), y: height - 14, "text-anchor": layer === n - 1 ? "end" : layer ? "middle" : "start" }, short(size)));
    });
    return svg;
  });
  const pick = choice("Output, in the middle of", traces.map((t, i) => [i, t.tensor]), 0, (i) => { trace = traces[i]; update(); });
  function update() {
    const rows = fanIns.map((k, layer) => [layer === 0 ? "embedding" : `layer ${layer}`, count(sizes[layer]), count(sizes[layer + 1]), k, count(trace.reached[layer])]);
    const thinned = fanIns.some((k, layer) => trace.connections[layer].length < k * (trace.reached[layer + 1] ?? 1));
    said.replaceChildren(h("p", { class: "note" }, `Output ${count(trace.output)} of ${count(sizes.at(-1))} depends on ${count(trace.reached[0])} of the ${count(sizes[0])} numbers of the embedding. ` +
      `${thinned ? "Of layers with many connections some are drawn." : "Every connection is drawn."} Wiring: ${topology}. A number of the embedding reaches ${percent(reach.reach_mean)} of all outputs on average, and at least ${percent(reach.reach_min)}.`),
    folded("The numbers", texts(["Layers of the generator", ["from", "units", "units of the next", "connections of each", "units that matter here"], rows])));
    box.redraw();
  }
  update();
  return [h("div", { class: "controls" }, pick.field), box, said];
}

const short = (n) => (n >= 1e6 ? `${number(Number((n / 1e6).toPrecision(2)))}M` : n >= 1e4 ? `${Math.round(n / 1e3)}k` : n >= 1e3 ? `${(n / 1e3).toFixed(1)}k` : String(n));
