"use strict";
// What the page gains from a script: tables that sort, figures with hover values, everything open in print.
// Without it, or where a step fails, tables stand in their order and figures are the pictures.
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };

  // Print shows what is folded.
  addEventListener("beforeprint", () => all("details:not([open])").forEach((part) => { part.dataset.folded = ""; part.open = true; }));
  addEventListener("afterprint", () => all("details[data-folded]").forEach((part) => { delete part.dataset.folded; part.open = false; }));

  // ---- Tables ----
  // The head's cell above each column, or none where several columns share it.
  const columnHeads = (table) => {
    const rows = [...table.tHead.rows];
    const grid = rows.map(() => []);
    rows.forEach((row, r) => {
      let c = 0;
      for (const cell of row.cells) {
        while (grid[r][c]) c += 1;
        for (let down = 0; down < cell.rowSpan; down += 1)
          for (let over = 0; over < cell.colSpan; over += 1) grid[r + down][c + over] = cell;
        c += cell.colSpan;
      }
    });
    return grid.at(-1).map((cell) => (cell && cell.colSpan === 1 ? cell : null));
  };
  const plainRows = (body) => [...body.rows].filter((row) => !row.classList.contains("group"));
  const sortable = (table, heads) => {
    const rows = [...table.tBodies].flatMap(plainRows);
    const whole = rows.every((row) => row.cells.length === heads.length && [...row.cells].every((cell) => cell.colSpan === 1 && cell.rowSpan === 1));
    return whole && [...table.tBodies].some((body) => plainRows(body).length > 1);
  };
  // A cell's number, or text; null for what is undefined or hidden, which stands last either way.
  const worth = (cell) => {
    const data = cell.querySelector("data.v");
    const text = (data ? data.getAttribute("value") : cell.textContent).trim();
    if (text === "" || text === "–") return null;
    return Number.isNaN(Number(text)) ? text : Number(text);
  };
  const order = (a, b, sign) => {
    if (a === null || b === null) return (a === null) - (b === null);
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return sign * (typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true }));
  };
  for (const table of all("table:not(.fixed)")) {
    const heads = columnHeads(table);
    if (!sortable(table, heads)) continue;
    const asWas = new Map([...table.tBodies].map((body) => [body, plainRows(body)]));
    heads.forEach((head, column) => {
      if (!head || !head.textContent.trim()) return;
      const button = make("button", { type: "button", className: "sort", title: "Sort; a third time: as it was" });
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const next = { ascending: "descending", descending: "none" }[head.getAttribute("aria-sort")] || "ascending";
        heads.forEach((other) => other?.removeAttribute("aria-sort"));
        if (next !== "none") head.setAttribute("aria-sort", next);
        for (const [body, rows] of asWas) {
          const keyed = rows.map((row) => [worth(row.cells[column]), row]);
          if (next !== "none") keyed.sort((a, b) => order(a[0], b[0], next === "ascending" ? 1 : -1));
          body.append(...keyed.map(([, row]) => row));
        }
      });
    });
  }

  // ---- Figures ----
  const packed = document.getElementById("plotly");
  if (!packed || !("DecompressionStream" in window) || !("IntersectionObserver" in window)) return;
  let loading = null;
  const library = () => (loading ??= (async () => {
    const bytes = Uint8Array.from(atob(packed.textContent.trim()), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    document.head.append(make("script", { textContent: await new Response(stream).text() }));
    if (!window.Plotly) throw new Error("the plotting library did not start");
  })());
  const night = matchMedia("(prefers-color-scheme: dark)");
  const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const escaped = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;");
  const DASHES = { dash: "4px 3px", dot: "1.5px 3px", dashdot: "6px 3px 1.5px 3px" };

  // Short, in few lines: plotly drops what is taller than its plot.
  const told = (trace, name, i) => {
    const parts = trace.hover.map(([words, column]) => `${escaped(words)} ${escaped(trace.shown[column][i])}`);
    const first = trace.low ? parts.splice(0, 3).join(", ").replace(/, (?=to )/, " ") : parts.shift();
    const lines = [`<b>${escaped(name)}</b>`, ...(trace.label ? [escaped(trace.label)] : []), first];
    while (parts.length) lines.push(parts.splice(0, 2).join("; "));
    return lines.join("<br>");
  };

  // One trace of the page's data as plotly's: its limits below, its points above.
  const drawn = (trace, panel, spec) => {
    const series = spec.series[trace.series];
    const colour = night.matches ? series.dark : series.colour;
    // Side by side, so that no interval hides another.
    const log = panel.x_type === "log";
    const every = panel.dodge ? panel.traces.flatMap((other) => other.raw[other.x]).map((value) => (log ? Math.log10(value) : value)) : [0];
    const aside = 0.012 * (trace.series - (spec.series.length - 1) / 2) * (Math.max(...every) - Math.min(...every));
    const x = trace.raw[trace.x].map((value) => (!aside ? value : log ? value * 10 ** aside : value + aside));
    const at = panel.rows ? trace.keys.map(() => -panel.rows.indexOf(series.name)) : trace.raw[trace.y];
    const meta = { series: trace.series };
    const traces = [];
    if (trace.low) {
      const [low, high] = [trace.raw[trace.low], trace.raw[trace.high]];
      const along = [], across = [];
      x.forEach((value, i) => {
        if (low[i] === null || high[i] === null) return;
        along.push(low[i], high[i], null);
        across.push(panel.rows ? at[i] : value, panel.rows ? at[i] : value, null);
      });
      const width = panel.rows ? 2.5 : 1.2;
      const [px, py] = panel.rows ? [along, across] : [across, along];
      traces.push({ x: px, y: py, mode: "lines", line: { color: colour, width }, opacity: panel.rows ? 1 : 0.6, hoverinfo: "skip", meta });
    }
    const bare = trace.marker === "none", ring = trace.marker === "ring";
    traces.push({
      x, y: at, meta, connectgaps: false,
      mode: panel.rows || ring ? "markers" : bare ? "lines" : "lines+markers",
      line: { color: colour, width: 1.6, dash: DASHES[trace.dash] || "solid" },
      marker: { color: ring ? ink("--card") : colour, symbol: series.symbol, size: ring ? 9 : panel.rows ? 9 : 7, line: { color: ring ? colour : ink("--card"), width: ring ? 2 : 0.8 } },
      hoverinfo: "text", text: trace.keys.map((_, i) => told(trace, series.name, i)),
    });
    if (ring) traces.at(-1).marker.symbol = "circle";
    return traces;
  };
  // The range that panels share, from the cells themselves.
  const range = (spec, axis) => {
    const values = spec.panels.flatMap((panel) => panel.traces.flatMap((trace) =>
      [trace[axis], ...(spec.share === axis && trace.low ? [trace.low, trace.high] : [])].flatMap((column) => trace.raw[column] || [])));
    const ends = values.filter((value) => value !== null);
    if (axis === "x") spec.panels.filter((panel) => panel.band).forEach(({ band }) => ends.push(-1.25 * band.raw, 1.25 * band.raw));
    const [low, high] = [Math.min(...ends), Math.max(...ends)];
    const space = 0.05 * (high - low) || 0.05;
    return [low - space, high + space];
  };
  const layout = (panel, spec, shared) => {
    const base = { gridcolor: ink("--rule"), linecolor: ink("--muted"), zeroline: false, fixedrange: true, automargin: true, tickfont: { color: ink("--muted") } };
    const made = {
      margin: { l: 44, r: 12, t: 6, b: 40 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false,
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: ink("--ink") }, hovermode: "closest", dragmode: false,
      hoverlabel: { bgcolor: ink("--paper"), bordercolor: ink("--muted"), font: { color: ink("--ink"), size: 12 }, align: "left", namelength: 0 },
      xaxis: { ...base, title: { text: escaped(panel.x), font: { size: 12 } }, type: panel.x_type || "linear", tickformat: panel.x_format || "" },
      yaxis: { ...base, title: { text: escaped(panel.y), font: { size: 12 } }, type: panel.y_type || "linear", tickformat: panel.y_format || "" },
      height: 270, shapes: [], annotations: [],
    };
    if (panel.x_type === "log") made.xaxis.dtick = "D2";
    if (panel.backwards) made.xaxis.autorange = "reversed";
    if (spec.share === "y") made.yaxis.range = [...shared];
    if (spec.share === "x") made.xaxis.range = [...shared];
    const line = { color: ink("--muted"), width: 1, dash: "4px 3px" };
    if (panel.diagonal) made.shapes.push({ type: "line", x0: 0, y0: 0, x1: 1, y1: 1, line, layer: "below" });
    if (panel.band) made.shapes.push({ type: "rect", yref: "paper", y0: 0, y1: 1, x0: -panel.band.raw, x1: panel.band.raw, fillcolor: ink("--rule"), line: { width: 0 }, layer: "below" });
    if (panel.line !== undefined) made.shapes.push({ type: "line", yref: "paper", y0: 0, y1: 1, x0: panel.line, x1: panel.line, line: { ...line, color: ink("--ink"), dash: "solid" }, layer: "below" });
    if (panel.rows) {
      // Names stand above their lines, so that a phone has the whole width for these.
      made.height = 62 + 34 * Math.max(panel.rows.length, 2);
      made.margin.l = made.margin.r;
      made.yaxis = { ...made.yaxis, visible: false, range: [0.65 - Math.max(panel.rows.length, 2), 0.85] };
      const name = { showarrow: false, yanchor: "bottom", xref: "paper", yshift: 4, font: { size: 12 } };
      panel.traces.forEach((trace) => {
        const row = panel.rows.indexOf(spec.series[trace.series].name);
        made.annotations.push({ ...name, x: 0, xanchor: "left", y: -row, text: escaped(panel.rows[row]) });
        if (trace.word) made.annotations.push({ ...name, x: 1, xanchor: "right", y: -row, text: `<b>${escaped(trace.shown[trace.word][0])}</b>` });
      });
    }
    return made;
  };

  const figures = [];
  const draw = (live) => {
    const shared = live.spec.share ? live.groups.map((group) => range({ ...live.spec, panels: live.spec.panels.filter((panel) => panel.group === group) }, live.spec.share)) : [];
    return Promise.all(live.spec.panels.map((panel, i) => {
      const traces = panel.traces.flatMap((trace) => drawn(trace, panel, live.spec));
      traces.forEach((trace) => { trace.visible = !live.hidden.has(trace.meta.series); });
      return window.Plotly.react(live.plots[i], traces, layout(panel, live.spec, shared[live.groups.indexOf(panel.group)]),
        { displayModeBar: false, responsive: true, doubleClick: false, scrollZoom: false });
    }));
  };
  const start = async (figure) => {
    const spec = JSON.parse(figure.querySelector("script[type='application/json']").textContent);
    const still = figure.querySelector(".still");
    const words = still.querySelector("img").alt;
    const live = { spec, hidden: new Set(), groups: [...new Set(spec.panels.map((panel) => panel.group))] };
    live.plots = spec.panels.map(() => make("div", { className: "plot" }));
    const panels = make("div", { className: spec.panels.length > 1 ? "panels" : "panels single" },
      ...spec.panels.map((panel, i) => make("div", { className: "panel" }, make("p", { className: "panel-title", textContent: panel.title }), live.plots[i])));
    panels.setAttribute("role", "group");
    panels.setAttribute("aria-label", words);
    live.plots.forEach((plot) => plot.setAttribute("aria-hidden", "true"));
    const legend = make("div", { className: "legend" });
    spec.series.forEach((series, i) => {
      const swatch = make("span", { className: "swatch" });
      swatch.style.setProperty("--day", series.colour);
      swatch.style.setProperty("--night", series.dark);
      const button = make("button", { type: "button" }, swatch, series.name);
      button.setAttribute("aria-pressed", "true");
      button.addEventListener("click", () => {
        if (!live.hidden.delete(i)) live.hidden.add(i);
        button.setAttribute("aria-pressed", String(!live.hidden.has(i)));
        draw(live);
      });
      if (spec.series.length > 1) legend.append(button);
    });
    const turn = make("button", { type: "button", className: "turn", textContent: "Show as a picture" });
    turn.addEventListener("click", () => {
      turn.textContent = figure.classList.toggle("pictured") ? "Show with hover values" : "Show as a picture";
      if (!figure.classList.contains("pictured")) draw(live);
    });
    const card = make("div", { className: "card live" }, panels, legend);
    still.before(card);
    figure.querySelector("figcaption").append(" ", turn);
    figure.classList.add("alive");
    try {
      await library();
      await draw(live);
      figures.push(live);
    } catch (error) {
      card.remove();
      turn.remove();
      figure.classList.remove("alive");
      console.error(error);
    }
  };
  const seen = new IntersectionObserver((entries) => entries.filter((entry) => entry.isIntersecting).forEach(({ target }) => {
    seen.unobserve(target);
    start(target);
  }), { rootMargin: "300px" });
  all("figure[data-live]").forEach((figure) => seen.observe(figure));
  night.addEventListener("change", () => figures.forEach(draw));
})();
