"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  // Charts: plotly.js is unpacked when the first one comes into sight, and runs because the policy names its digest.
  const figures = JSON.parse($("figures").textContent);
  let library;
  const plotly = () => (library ??= (async () => {
    const packed = Uint8Array.from(atob($("library").textContent), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
    return window.Plotly;
  })());
  const colored = (value, style) => {
    if (typeof value === "string") return value.startsWith("--") ? style.getPropertyValue(value).trim() || value : value;
    if (Array.isArray(value)) return value.map((item) => colored(item, style));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, colored(item, style)]));
    }
    return value;
  };
  const draw = async (plot) => {
    const Plotly = await plotly();
    const style = getComputedStyle(document.documentElement);
    const { data, layout } = colored(figures[Number(plot.dataset.figure)], style);
    const [text, quiet, line] = ["--text", "--quiet", "--line"].map((name) => style.getPropertyValue(name).trim());
    const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
    await Plotly.react(plot, data, {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: text, size: 11 }, legend: { orientation: "h", y: -0.3, font: { color: quiet } },
      margin: { l: 55, r: 15, t: 20, b: 40 }, ...layout,
      xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis },
    }, { displayModeBar: false, responsive: true });
    plot.dataset.drawn = "yes";
  };
  const plots = all(".plot");
  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (isIntersecting) { seen.unobserve(target); draw(target); }
    }
  }, { rootMargin: "300px" });
  plots.forEach((plot) => seen.observe(plot));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots.filter((plot) => plot.dataset.drawn).forEach(draw));

  // Filters: a row stays when its own verdict, gate and engine are chosen, and its case holds the text.
  const rows = all("#table tbody tr");
  const cases = new Map(all("details.case").map((one) => [one.dataset.case, one]));
  const texts = new Map([...cases].map(([key, one]) => [key, one.textContent.toLowerCase()]));
  const apply = () => {
    const [verdict, gate, engine] = ["by-verdict", "by-gate", "by-engine"].map((id) => $(id).value);
    const text = $("by-text").value.trim().toLowerCase();
    const kept = new Set();
    for (const row of rows) {
      const { dataset } = row;
      const fits = (!verdict || dataset.verdict === verdict) && (!gate || dataset.gate === gate)
        && (!engine || dataset.engine === engine) && (!text || texts.get(dataset.case).includes(text));
      row.hidden = !fits;
      if (fits) kept.add(dataset.case);
    }
    for (const [key, one] of cases) {
      one.hidden = !kept.has(key);
      const flips = all("details.flip", one);
      const found = text ? flips.filter((flip) => flip.textContent.toLowerCase().includes(text)) : [];
      for (const flip of flips) {
        flip.hidden = found.length > 0 && !found.includes(flip);
        if (found.length > 0 && found.length <= 5) flip.open = found.includes(flip);
      }
      if (found.length) one.open = true;
    }
    $("count").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} gates`;
  };
  $("filters").addEventListener("input", apply);
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  apply();

  // Keyboard: / types, Escape forgets, the arrows walk through the table, Enter goes to the case.
  const reveal = (target) => {
    for (let one = target; one; one = one.parentElement) if (one.tagName === "DETAILS") one.open = true;
  };
  const goTo = () => {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    if (!target) return;
    reveal(target);
    target.scrollIntoView();
    target.querySelector("summary")?.focus({ preventScroll: true });
  };
  addEventListener("hashchange", goTo);
  goTo();
  $("table").addEventListener("click", (event) => {
    const link = event.target.closest("a");
    // The place may be the one that is shown already.
    if (link && link.hash === location.hash) goTo();
  });
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.matches("input, select");
    if (event.key === "/" && !typing) {
      event.preventDefault();
      $("by-text").focus();
    } else if (event.key === "Escape") {
      $("filters").reset();
      apply();
    } else if ((event.key === "ArrowDown" || event.key === "ArrowUp") && event.target.matches("#table a")) {
      const links = all("#table tbody tr:not([hidden]) a");
      const next = links[links.indexOf(event.target) + (event.key === "ArrowDown" ? 1 : -1)];
      if (next) { event.preventDefault(); next.focus(); }
    }
  });

  // Paper shows everything; what was folded is folded again afterwards.
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = all("details:not([open])");
    opened.forEach((one) => { one.open = true; });
    plots.filter((plot) => !plot.dataset.drawn).forEach(draw);
  });
  addEventListener("afterprint", () => opened.forEach((one) => { one.open = false; }));
})();
