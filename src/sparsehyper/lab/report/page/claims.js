// What a study claims: a sentence a finding, and every interval in a picture.

const VERDICTS = { supported: ["yes", "▲", "above zero"], "not supported": ["no", "▼", "below zero"], undecided: ["open", "○", "undecided"] };
const FEW_FINDINGS = 8;

const kind = (claim) => VERDICTS[claim.verdict]?.[0] ?? "open";
const sign = (verdict) => VERDICTS[verdict]?.[1] ?? "";
const column = ({ shots }) => (String(shots).startsWith("mean") ? "mean" : shotsOf(shots));
const interval = ({ low, high }) => (low === null ? "no interval with one seed" : `${points(low)} to ${points(high)}`);

/* A sentence for each difference, over all places where it was measured; where there are several
   numbers of images, over the means. Those that are decided most often come first. */
function findings(claims) {
  const means = claims.filter((claim) => column(claim) === "mean");
  const found = grouped(means.length ? means : claims, (claim) => claim.claim).map(([name, own]) => {
    const counts = Object.keys(VERDICTS).map((verdict) => own.filter((claim) => claim.verdict === verdict).length);
    const most = Object.keys(VERDICTS)[counts.indexOf(Math.max(...counts))];
    const said = own.length === 1 ? `${VERDICTS[most][2]} for ${own[0].family}, by ${points(own[0].mean)} points (${interval(own[0])})`
      : `${Object.values(VERDICTS).map(([, , word], i) => counts[i] && `${word} in ${counts[i]}`).filter(Boolean).join(", ")} of ${own.length} cases, by ${points(mean(own.map((claim) => claim.mean)))} points on average`;
    return { decided: (counts[0] + counts[1]) / own.length, line: h("li", {}, h("span", { class: `verdict ${VERDICTS[most][0]}`, "aria-hidden": "true" }, sign(most)), h("b", {}, name), ` is ${said}.`) };
  }).sort((a, b) => b.decided - a.decided).map(({ line }) => line);
  const list = (some) => h("ul", { class: "findings" }, some);
  const rest = found.slice(FEW_FINDINGS);
  return [list(found.slice(0, FEW_FINDINGS)), rest.length ? folded(`${rest.length} more, decided less often`, list(rest)) : null];
}

/* A forest plot a set; with numbers of images, an overview of all sets and the plots of one. */
function verdictsOf(claims) {
  const sets = grouped(claims, (claim) => claim.family);
  const numbers = folded("The numbers", verdictTable(claims));
  if (claims.every((claim) => claim.shots === undefined))
    return [...sets.map(([name, own]) => forest(name, own, (claim) => claim.claim)), numbers];
  const means = claims.filter((claim) => column(claim) === "mean"), place = h("div");
  const overview = table({ label: "Verdicts on the means over numbers of images", rows: sets, columns: [
    { title: "tasks", text: ([family]) => family },
    ...[...new Set(means.map((claim) => claim.claim))].map((name) => ({ title: name, text: ([family]) => {
      const claim = means.find((one) => one.family === family && one.claim === name);
      return claim ? h("span", { class: `verdict ${kind(claim)}`, "data-tip": `${claim.verdict}: ${interval(claim)}` }, `${sign(claim.verdict)} ${points(claim.mean)}`) : "–";
    } })),
  ] });
  const show = (i) => place.replaceChildren(...grouped(sets[i][1], (claim) => claim.claim).map(([name, own]) =>
    forest(name, own, (claim) => (column(claim) === "mean" ? "mean" : `${shotsOf(claim.shots)} a class`))));
  show(0);
  return [overview, h("div", { class: "controls" }, choice("Tasks", sets.map(([name], i) => [i, name]), 0, show).field), place, numbers];
}

const verdictTable = (claims) => table({ label: "Differences of accuracy", rows: claims, columns: [
  { title: "where", text: (claim) => claim.family, value: (claim) => claim.family },
  { title: "difference", left: true, text: (claim) => claim.claim, value: (claim) => claim.claim },
  claims.some((claim) => claim.shots !== undefined) && { title: "images per class", text: (claim) => shotsOf(claim.shots) },
  { title: "points", text: (claim) => points(claim.mean), value: (claim) => claim.mean },
  { title: "verdict", left: true, text: (claim) => h("span", { class: `verdict ${kind(claim)}` }, `${sign(claim.verdict)} ${claim.verdict}`), value: (claim) => claim.verdict },
  { title: "95% interval", text: interval },
].filter(Boolean) });

/* Differences with their 95% intervals in points, on an axis; names above them where it is narrow. */
function forest(title, claims, name) {
  const ends = claims.flatMap(({ mean, low, high }) => [0, mean, low, high]).filter((x) => x !== null).map((x) => 100 * x);
  const margin = 0.05 * (Math.max(...ends) - Math.min(...ends)) || 1, domain = [Math.min(...ends) - margin, Math.max(...ends) + margin];
  const draw = (width) => {
    const wide = Math.max(...claims.map((claim) => name(claim).length)) * 6.8 + 12, beside = wide < width * 0.5;
    const row = beside ? 22 : 28, bottom = claims.length * row + 4, left = beside ? wide : 4, right = width - 66;
    const x = scale({ domain }, left, right), svg = s("svg", { width, height: bottom + 24, viewBox: `0 0 ${width} ${bottom + 24}` });
    for (const value of ticks(...domain, Math.max(3, (right - left) / 90))) svg.append(
      s("line", { class: value === 0 ? "rule" : "grid", x1: x(value), x2: x(value), y1: 0, y2: bottom }),
      s("text", { x: x(value), y: bottom + 16, "text-anchor": "middle" }, String(value).replace("-", "−")));
    svg.append(s("text", { x: width, y: bottom + 16, "text-anchor": "end" }, "points"));
    claims.forEach((claim, i) => {
      const { mean, low, high } = claim, y = (i + 1) * row - (beside ? 8 : 4), at = (value) => x(100 * value);
      const colour = { yes: "var(--good)", no: "var(--second)", open: "var(--muted)" }[kind(claim)];
      svg.append(s("text", { x: 0, y: beside ? y + 4 : y - 9, class: "strong" }, name(claim)));
      if (low !== null) svg.append(s("path", { d: `M${at(low)},${y}H${at(high)}M${at(low)},${y - 4}v8M${at(high)},${y - 4}v8`, stroke: colour, "stroke-width": 2, fill: "none" }));
      svg.append(marker({ yes: "^", no: "v", open: "o" }[kind(claim)], at(mean), y, 5, { fill: kind(claim) === "open" ? "var(--card)" : colour, stroke: colour, "stroke-width": 2,
        "data-tip": `${name(claim)}, ${claim.family}: ${points(mean)} points, ${interval(claim)}; ${claim.verdict}` }),
        s("text", { x: width, y: y + 4, "text-anchor": "end", class: "strong" }, points(mean)));
    });
    return svg;
  };
  return chart(`Differences of accuracy, ${title}; the table below has the numbers`, draw, { title, data: () => [["where", "difference", "images per class", "mean", "low", "high", "verdict"],
    ...claims.map((claim) => [claim.family, claim.claim, claim.shots === undefined ? "" : shotsOf(claim.shots), claim.mean, claim.low, claim.high, claim.verdict])] });
}
