// What was described, as tabs where it is more than one thing.

(function main() {
  const described = JSON.parse(document.getElementById("data").textContent);
  const kinds = { run: runPanel, comparison: comparisonPanel, study: studyPanel };
  const panels = described.map((one, i) => kinds[one.kind](i, one));
  document.getElementById("content").append(...panels);
  if (panels.length > 1) {
    const { list, select } = tabs(described.map((one) => one.name), panels);
    panels.forEach((panel, i) => {
      panel.setAttribute("role", "tabpanel");
      panel.setAttribute("aria-labelledby", `tab-${i}`);
    });
    document.getElementById("tabs").append(list);
    select(0);
  } else panels[0].open();
  followPointer();
  // Twice: charts are drawn once the first layout is known.
  requestAnimationFrame(() => requestAnimationFrame(() => performance.mark("drawn")));
})();
