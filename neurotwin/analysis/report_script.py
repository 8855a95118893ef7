"""Style and script of the page of a report: sorting, filtering, cards and charts of units, without any library."""

__all__ = ["SCRIPT", "STYLE"]

STYLE = """
body { max-width: 76rem }
.lead { font-size: 1.05rem } .lead li { margin: .25rem 0 }
.note { color: var(--muted) }
.chart { width: 100%; max-width: 36rem; height: auto; display: block }
.chart text { fill: var(--muted); font: 12px system-ui, sans-serif }
.chart path { fill: none; stroke-linejoin: round }
.chart .grid { stroke: var(--rule) } .chart .limit { stroke: var(--muted); stroke-dasharray: 4 3 }
.chart .line { stroke-width: 1.8 } .chart .dots { stroke-width: 4.5; stroke-linecap: round; opacity: .75 }
.chart .seen { stroke: var(--seen); stroke-width: 1.1 } .chart .told { stroke: var(--c1); stroke-width: 1.5 }
.c0 { stroke: var(--c0) } .c1 { stroke: var(--c1) } .c2 { stroke: var(--c2) } .c3 { stroke: var(--c3) }
.c4 { stroke: var(--c4) } .c5 { stroke: var(--c5) }
.legend { margin: .2rem 0; color: var(--muted); font-size: .85rem }
.key::before { content: ""; display: inline-block; width: .9em; height: .25em; margin: 0 .35em .2em .6em;
  background: var(--key) }
.k0 { --key: var(--c0) } .k1 { --key: var(--c1) } .k2 { --key: var(--c2) } .k3 { --key: var(--c3) }
.k4 { --key: var(--c4) } .k5 { --key: var(--c5) } .kseen { --key: var(--seen) }
.trio { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: 1rem }
.trio > * { min-width: 0 }
.trio h4, .card h4 { margin: .6rem 0 .1rem; font-size: .95rem } .card h3 { margin: 0; font-size: 1.05rem }
figure { margin: .4rem 0; max-width: 36rem } figcaption { color: var(--muted); font-size: .85rem }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem }
.pictures img { width: 8rem; image-rendering: pixelated; border: 1px solid var(--rule) }
.filters { display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: center; margin: .6rem 0 }
.filters input, .filters select, .filters button { font: inherit; max-width: 100%; padding: .15rem .3rem }
.filters input[type=search] { width: 14rem } .filters input[type=number] { width: 6rem }
#units { max-height: 80vh; overflow: auto } #units th { position: sticky; top: 0; background: var(--paper); z-index: 1 }
th button, td button, .jump { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer }
th button { font-weight: 600 } td button, .jump { color: var(--link); text-decoration: underline }
th[aria-sort=ascending] button::after { content: " ▲" } th[aria-sort=descending] button::after { content: " ▼" }
#units tbody tr:not(.open):hover { background: var(--shade) }
tr.changed td:first-child { border-left: 4px solid var(--c1) }
tr.open > td { text-align: left; white-space: normal; background: var(--shade); padding: .8rem }
.card { position: sticky; left: .8rem; width: min(70rem, calc(100vw - 6rem)) }
.card table { margin: .3rem 0; font-size: .9rem } .card td, .card th { padding: .12rem .5rem }
#units .card th { position: static; background: none } .card th, .card td:first-child { white-space: normal }
.columns { columns: 2 16rem; font-size: .9rem }
.columns div { break-inside: avoid; overflow-wrap: anywhere }
"""

SCRIPT = r"""
"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const body = document.querySelector("#units tbody");
const rows = body ? [...body.rows] : [];
const safe = text => String(text).replace(/[&<>"']/g, c => "&#" + c.charCodeAt(0) + ";");
const show = value => value === null || value === undefined ? "–" : String(+value.toPrecision(4));

function curve(packed, from) {
  const [low, high] = packed, text = atob(packed[from]);
  return Array.from(text, c => c.charCodeAt(0)).map(v => v === 255 ? null : low + (high - low) * v / 254);
}

function path(values, x, y) {
  let d = "", pen = false;
  values.forEach((v, i) => {
    if (v === null) { pen = false; return; }
    d += (pen ? "L" : "M") + x(i).toFixed(1) + " " + y(v).toFixed(1);
    pen = true;
  });
  return d;
}

function chart(title, series, step, unit, across) {
  const W = 420, H = 150, left = 44, right = 6, top = 8, bottom = 30;
  const n = Math.max(...series.map(s => s.values.length));
  const all = series.flatMap(s => s.values).filter(v => v !== null);
  if (!all.length) return "";
  const low = Math.min(0, ...all), high = Math.max(...all, low + 1e-9);
  const x = i => left + (W - left - right) * i / Math.max(1, n - 1);
  const y = v => H - bottom - (H - top - bottom) * (v - low) / (high - low);
  const lines = series.map(s => `<path class="${s.look}" d="${path(s.values, x, y)}"/>`).join("");
  const marks = [low, (low + high) / 2, high].map(v =>
    `<path class="grid" d="M${left} ${y(v)}H${W - right}"/>` +
    `<text x="${left - 5}" y="${y(v) + 4}" text-anchor="end">${+v.toPrecision(2)}</text>`).join("");
  const end = +((step || 1) * (n - 1)).toPrecision(3);
  return `<figure><svg class="chart" role="img" viewBox="0 0 ${W} ${H}"><title>${safe(title)}</title>${marks}${lines}` +
    `<text x="${left}" y="${H - 14}">0</text>` +
    `<text x="${W - right}" y="${H - 14}" text-anchor="end">${end}</text>` +
    `<text x="${(left + W) / 2}" y="${H - 3}" text-anchor="middle">${safe(across)}</text></svg>` +
    `<figcaption>${safe(title)}; vertical axis in ${safe(unit)}. ` +
    series.map(s => `<span class="key ${s.key}">${s.name}</span>`).join(" ") + `</figcaption></figure>`;
}

function charts(unit) {
  const about = DATA.sessions[unit.r + "/" + unit.k[0]] || {};
  let html = "";
  for (const kind of ["trace", "psth"]) {
    if (!unit[kind] || !about[kind]) continue;
    const {step, unit: scale, repeats, split} = about[kind];
    const part = split === "val" ? "validation" : split;
    const title = kind === "trace" ? `A stretch of ${part}` : `PSTH: mean over ${repeats} repeats (${part})`;
    const across = step ? "time (s)" : "presentation";
    html += chart(title, [
      {name: "recorded", look: "seen", key: "kseen", values: curve(unit[kind], 2)},
      {name: "twin", look: "told", key: "k1", values: curve(unit[kind], 3)}], step, scale, across);
  }
  if (unit.tuning) {
    const step = 360 / unit.tuning.length;
    html += chart("Direction tuning of the twin", [
      {name: "twin", look: "told", key: "k1", values: unit.tuning}], step, "Hz", "direction of drift (degrees)");
  }
  if (unit.rf || unit.mei) {
    const picture = (data, text) => data ? `<figure><img alt="${text}" src="data:image/png;base64,${data}">` +
      `<figcaption>${text}</figcaption></figure>` : "";
    html += `<div class="pictures">${picture(unit.rf, "receptive field")}${picture(unit.mei, "exciting image")}</div>`;
  }
  return html || '<p class="note">There are no traces, PSTHs or pictures of this unit.</p>';
}

function card(unit) {
  const figures = DATA.metrics.map(([name, title], i) => [title, unit.v[i], unit.t ? unit.t[i] : null])
    .filter(f => f[1] !== null || f[2] !== null);
  const test = unit.t ? "<th>test</th>" : "";
  const table = `<table><tr><th>figure</th><th>validation</th>${test}</tr>` + figures.map(([title, v, t]) =>
    `<tr><td>${safe(title)}</td><td>${show(v)}</td>${unit.t ? `<td>${show(t)}</td>` : ""}</tr>`).join("") + "</table>";
  const rank = unit.rank === null ? "It has no figure of merit." :
    `It is better than ${Math.round(100 * unit.rank)}% of the units of its run.`;
  const change = unit.c ? ` Compared with the other run it changed: ${safe(unit.c)}.` : "";
  const found = Object.entries(unit.x).map(([name, values]) => `<h4>${safe(name.replaceAll("_", " "))}</h4>` +
    `<div class="columns">` + values.map((value, i) => value === "" || value === "nan" ? "" :
      `<div>${safe(DATA.columns[unit.r][name][i])}: ${safe(value)}</div>`).join("") + "</div>").join("");
  const area = unit.a ? `, ${safe(unit.a)}` : "";
  return `<div class="card"><h3>Unit ${safe(unit.k[1])} of ${safe(unit.k[0])}${area} (${safe(unit.r)})</h3>` +
    `<p>${rank}${change}</p><div class="trio"><div class="wide">${table}</div><div>${charts(unit)}</div></div>` +
    `${found}</div>`;
}

function toggle(row, open) {
  const next = row.nextElementSibling, isOpen = next !== null && next.classList.contains("open");
  if (open === isOpen) return;
  row.querySelector("button").setAttribute("aria-expanded", String(!isOpen));
  if (isOpen) { next.remove(); return; }
  const added = document.createElement("tr");
  added.className = "open";
  added.innerHTML = `<td colspan="${row.cells.length}">${card(DATA.units[row.dataset.u])}</td>`;
  row.after(added);
}

function value(row, column) {
  const text = row.cells[column].dataset.v ?? row.cells[column].textContent;
  const number = text.trim() === "" ? NaN : Number(text);
  return Number.isNaN(number) ? text : number;
}

function sort(column, direction) {
  const missing = v => v === "" || v === "NaN" || v === "–";
  rows.forEach(row => toggle(row, false));
  rows.sort((one, other) => {
    const a = value(one, column), b = value(other, column);
    if (missing(a) || missing(b)) return missing(a) - missing(b);
    if (typeof a === "number" && typeof b === "number") return direction * (a - b);
    return direction * String(a).localeCompare(String(b), undefined, {numeric: true});
  });
  body.append(...rows);
}

function filter() {
  const read = id => document.getElementById(id)?.value ?? "";
  const words = read("f-text").toLowerCase().split(/\s+/).filter(Boolean);
  const least = read("f-least"), changed = document.getElementById("f-changed")?.checked;
  let shown = 0;
  for (const row of rows) {
    const unit = DATA.units[row.dataset.u], text = row.textContent.toLowerCase();
    const keep = words.every(word => text.includes(word)) &&
      (!read("f-run") || unit.r === read("f-run")) && (!read("f-session") || unit.k[0] === read("f-session")) &&
      (!read("f-area") || unit.a === read("f-area")) && (!changed || unit.c) &&
      (least === "" || Number(row.dataset.m) >= Number(least));
    if (!keep) toggle(row, false);
    row.hidden = !keep;
    shown += keep;
  }
  document.getElementById("count").textContent = `${shown} of ${rows.length} units`;
}

function fill(place) {
  if (place.dataset.filled) return;
  place.dataset.filled = "1";
  place.querySelector(".drawn").innerHTML = charts(DATA.units[place.dataset.u]);
}

function goTo(number) {
  const row = rows.find(r => r.dataset.u === number);
  if (row.hidden) { document.querySelector(".filters").reset(); filter(); }
  toggle(row, true);
  row.scrollIntoView({block: "start"});
  row.querySelector("button").focus({preventScroll: true});
}

document.querySelectorAll("#units th").forEach((head, column) => head.querySelector("button")
  .addEventListener("click", () => {
    const now = head.getAttribute("aria-sort");
    const down = now ? now === "ascending" : head.dataset.first === "descending";
    document.querySelectorAll("#units th").forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    sort(column, down ? -1 : 1);
  }));
body?.addEventListener("click", event => {
  const row = event.target.closest("tr");
  if (row && !row.closest(".card") && !row.classList.contains("open")) toggle(row);
});
const form = document.querySelector(".filters");
form?.addEventListener("input", filter);
form?.addEventListener("change", filter);
form?.addEventListener("reset", () => setTimeout(filter));
form?.addEventListener("submit", event => event.preventDefault());
document.querySelectorAll("[data-go]").forEach(b => b.addEventListener("click", () => goTo(b.dataset.go)));
const typical = [...document.querySelectorAll(".typical")];
typical.filter(place => !place.closest("details:not([open])")).forEach(fill);
document.querySelectorAll("details").forEach(d => d.addEventListener("toggle",
  () => d.open && d.querySelectorAll(".typical").forEach(fill)));
if (body) filter();
"""
