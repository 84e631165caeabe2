// Tabs, sections that are drawn when they come into view, and what is shown on pointing.

/* Tabs as the WAI-ARIA practices have them: arrow keys, Home and End move, one tab is in the
   order of the tab key. `show(i)` makes the panel on its first showing. */
function tabs(names, panels) {
  const buttons = names.map((name, i) =>
    h("button", { type: "button", role: "tab", id: `tab-${i}`, "aria-controls": `panel-${i}`, onclick: () => chosen(i) }, name));
  function select(i) {
    buttons.forEach((button, j) => {
      button.setAttribute("aria-selected", i === j);
      button.tabIndex = i === j ? 0 : -1;
      panels[j].hidden = i !== j;
    });
    panels[i].open();
  }
  const chosen = (i) => {
    select(i);
    history.replaceState(null, "", `#panel-${i}`);
  };
  const moves = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity };
  const list = h("div", { role: "tablist", "aria-label": "What is shown", onkeydown: (event) => {
    if (!(event.key in moves)) return;
    const now = buttons.indexOf(document.activeElement), move = moves[event.key], n = buttons.length;
    const next = Number.isFinite(move) ? (now + move + n) % n : move < 0 ? 0 : n - 1;
    event.preventDefault();
    chosen(next);
    buttons[next].focus();
  } }, buttons);
  return { list, select };
}

/* A panel: a heading, and sections `{id, title, note, draw}`. `draw()` returns what to show, and is
   called when the section is near the window, or when what is below it is asked for. */
function panel(index, title, lead, notices, sections) {
  const root = h("div", { class: "panel", id: `panel-${index}` });
  root.open = () => {
    root.open = () => {};
    const parts = sections.map(({ id, title, note, draw }) => {
      const body = h("div", { class: "body waiting" }), anchor = `${id}-${index}`;
      const element = h("section", { id: anchor, "aria-labelledby": `${anchor}-title`, tabindex: -1 },
        h("h3", { id: `${anchor}-title` }, title), note ? h("p", { class: "note" }, note) : null, body);
      const link = h("a", { href: `#${anchor}` }, title);
      const part = { element, link, visible: false, render() {
        part.render = () => {};
        body.classList.remove("waiting");
        body.append(...[draw()].flat().filter(Boolean));
        element.dataset.drawn = "";
      } };
      // What is above moves things when it is drawn: first, then.
      part.reach = () => parts.slice(0, parts.indexOf(part) + 1).forEach((p) => p.render());
      link.addEventListener("click", part.reach);
      return part;
    });
    const of = new Map(parts.map((part) => [part.element, part]));
    const near = new IntersectionObserver((entries) => entries.forEach((entry) => {
      if (entry.isIntersecting) of.get(entry.target).render();
    }), { rootMargin: "300px 0px" });
    const inView = new IntersectionObserver((entries) => {
      for (const entry of entries) of.get(entry.target).visible = entry.isIntersecting;
      const current = parts.find((part) => part.visible);
      if (!current) return;
      for (const part of parts) part === current ? part.link.setAttribute("aria-current", "true") : part.link.removeAttribute("aria-current");
      const strip = current.link.parentElement;
      if (strip.scrollWidth > strip.clientWidth) strip.scrollLeft = current.link.offsetLeft - strip.clientWidth / 3;
    }, { rootMargin: "-20% 0px -55% 0px" });
    const charts = () => (root.hidden ? [] : root.querySelectorAll(".chart"));
    window.addEventListener("beforeprint", () => {
      if (!root.hidden) parts.forEach((part) => part.render());
      charts().forEach((box) => box.print());
    });
    window.addEventListener("afterprint", () => charts().forEach((box) => box.screen()));
    root.append(h("h2", {}, title), h("p", { class: "lead" }, lead),
      ...notices.filter(Boolean).map((text) => h("p", { class: "notice" }, text)),
      h("div", { class: "columns" }, h("nav", { "aria-label": `Sections of ${title}` }, parts.map((part) => part.link)),
        h("div", { class: "sections" }, parts.map((part) => part.element))));
    parts[0].render();
    root.reach = (anchor) => {
      const part = parts.find(({ element }) => element.id === anchor);
      if (!part) return;
      part.reach();
      part.element.scrollIntoView();
    };
    for (const part of parts) near.observe(part.element), inView.observe(part.element);
  };
  return root;
}

// A setting that several pictures show and change.
function shared(value) {
  const listeners = [];
  return {
    get value() { return value; },
    set(next) { value = next; for (const listener of listeners) listener(next); },
    listen(listener) { listeners.push(listener); listener(value); },
  };
}

function followPointer() {
  const tip = document.getElementById("tip");
  const follow = (event, place) => {
    const marked = event.target instanceof Element && event.target.closest("[data-tip]");
    if (marked) showTip(marked.dataset.tip, place(marked));
    else tip.hidden = true;
  };
  document.addEventListener("pointerover", (event) => follow(event, () => event));
  document.addEventListener("focusin", (event) => follow(event, (marked) => {
    const { right, top } = marked.getBoundingClientRect();
    return { clientX: right, clientY: top };
  }));
  document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
}

function showTip(text, event) {
  const tip = document.getElementById("tip");
  tip.hidden = false;
  tip.textContent = text;
  const { width, height } = tip.getBoundingClientRect();
  const x = Math.min(event.clientX + 12, window.innerWidth - width - 6);
  const y = event.clientY - height - 10 > 0 ? event.clientY - height - 10 : event.clientY + 18;
  tip.style.transform = `translate(${Math.max(6, x)}px, ${y}px)`;
}

/* A configuration as tables of dotted keys. */
function configuration(parts) {
  const flat = (value, key) => value !== null && typeof value === "object" && !Array.isArray(value) && Object.keys(value).length
    ? Object.entries(value).flatMap(([k, v]) => flat(v, key ? `${key}.${k}` : k))
    : [[key, typeof value === "string" ? value : JSON.stringify(value)]];
  return parts.filter(([, value]) => value).map(([title, value]) => folded(title, texts([title, ["setting", "value"], flat(value, "")], true)));
}
