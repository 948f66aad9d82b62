"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  // Charts: plotly.js is unpacked once the page stands, and runs because the policy names its digest.
  const figures = JSON.parse($("figures").textContent);
  const plots = all(".plot");
  const unpack = async () => {
    const packed = Uint8Array.from(atob($("library").textContent), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  };
  const colored = (value, style) => {
    if (typeof value === "string") return value.startsWith("--") ? style.getPropertyValue(value).trim() || value : value;
    if (Array.isArray(value)) return value.map((item) => colored(item, style));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, colored(item, style)]));
    }
    return value;
  };
  const draw = (plot, width) => {
    const style = getComputedStyle(document.documentElement);
    const { data, layout } = colored(figures[Number(plot.dataset.figure)], style);
    const [text, quiet, line, page] = ["--text", "--quiet", "--line", "--page"].map((name) => style.getPropertyValue(name).trim());
    const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
    window.Plotly.react(plot, data, {
      paper_bgcolor: page, plot_bgcolor: page, width, height: 260,
      font: { color: text, size: 11 }, hoverlabel: { font: { size: 11 } },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { color: quiet } },
      margin: { l: 50, r: 12, t: 36, b: 40 }, ...layout,
      xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis },
    }, { displayModeBar: false, responsive: true });
    plot.dataset.drawn = "yes";
  };
  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (isIntersecting) { seen.unobserve(target); draw(target); }
    }
  }, { rootMargin: "300px" });
  if (plots.length) {
    unpack().then(() => plots.forEach((plot) => seen.observe(plot)));
  }
  const again = () => plots.filter((plot) => plot.dataset.drawn).forEach((plot) => draw(plot));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);

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

  const foldAll = (open) => cases.forEach((one) => { one.open = open; });
  $("unfold").addEventListener("click", () => foldAll(true));
  $("fold").addEventListener("click", () => foldAll(false));

  // Paper shows everything, dark on light, in charts of half a page; what was folded is folded again afterwards.
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = all("details:not([open])");
    opened.forEach((one) => { one.open = true; });
    document.documentElement.classList.add("paper");
    if (window.Plotly) plots.forEach((plot) => draw(plot, 320));
  });
  addEventListener("afterprint", () => {
    opened.forEach((one) => { one.open = false; });
    document.documentElement.classList.remove("paper");
    if (window.Plotly) plots.forEach((plot) => { window.Plotly.purge(plot); delete plot.dataset.drawn; seen.observe(plot); });
  });
})();
