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
    const follow = () => { // the address names a panel or a section of one
      const anchor = location.hash.slice(1), i = anchor.match(/-(\d+)$/)?.[1];
      if (!panels[i]) return;
      select(Number(i));
      panels[i].reach(anchor);
    };
    select(0);
    window.addEventListener("hashchange", follow);
    follow();
  } else {
    panels[0].open();
    panels[0].reach(location.hash.slice(1));
  }
  followPointer();
  // Twice: charts are drawn once the first layout is known.
  requestAnimationFrame(() => requestAnimationFrame(() => performance.mark("drawn")));
})();
