// The page's own script: tables that can be filtered, sorted and opened, and figures that follow the reader's colours.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const PAGE = 100;
const dark = window.matchMedia("(prefers-color-scheme: dark)");

function make(tag, text, attributes) {
  const element = document.createElement(tag);
  if (text !== undefined && text !== null) element.textContent = text;
  for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
  return element;
}

function shown(value, digits) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "number" && digits !== undefined) return value.toFixed(digits);
  if (typeof value === "number" && !Number.isInteger(value)) return Math.abs(value) >= 1000 ? value.toFixed(0) : Math.abs(value) >= 10 ? value.toFixed(1) : value.toPrecision(3).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");
  return String(value);
}

function less(a, b) {
  if (a === b) return 0;
  if (a === null || a === undefined) return 1;
  if (b === null || b === undefined) return -1;
  return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });
}

class Board {
  constructor(place, board) {
    this.place = place;
    this.board = board;
    this.visible = board.columns.map((column) => column.shown);
    this.sorted = { column: null, down: false };
    this.filters = new Map();
    this.text = "";
    this.page = 0;
    this.open = new Set();
    this.controls();
    this.region = make("div", null, { class: "scroll", tabindex: "0", role: "region", "aria-label": "Leaderboard of " + board.name });
    this.status = make("p", null, { class: "quiet", role: "status" });
    this.pages = make("div", null, { class: "controls" });
    place.append(this.region, this.status, this.pages);
    this.draw();
  }

  controls() {
    const bar = make("div", null, { class: "controls" });
    const label = make("label", "Rows that hold");
    const input = make("input", null, { type: "search" });
    input.addEventListener("input", () => { this.text = input.value.toLowerCase(); this.page = 0; this.draw(); });
    label.append(input);
    bar.append(label);
    this.board.columns.forEach((column, index) => {
      const values = [...new Set(this.board.rows.map((row) => shown(row.cells[index])))];
      if (!column.axis || values.length < 2 || values.length > 30) return;
      const choice = make("label", column.title);
      const select = make("select");
      select.append(make("option", "all", { value: "" }));
      values.sort((a, b) => less(a, b)).forEach((value) => select.append(make("option", value, { value })));
      select.addEventListener("change", () => { select.value === "" ? this.filters.delete(index) : this.filters.set(index, select.value); this.page = 0; this.draw(); });
      choice.append(select);
      bar.append(choice);
    });
    const columns = make("details");
    columns.append(make("summary", "Columns"));
    const list = make("div", null, { class: "columns" });
    this.board.columns.forEach((column, index) => {
      const each = make("label");
      const box = make("input", null, { type: "checkbox" });
      box.checked = this.visible[index];
      box.addEventListener("change", () => { this.visible[index] = box.checked; this.draw(); });
      each.append(box, document.createTextNode(column.title));
      list.append(each);
    });
    columns.append(list);
    this.place.append(bar, columns);
  }

  rows() {
    let rows = this.board.rows.filter((row) => (!this.text || row.cells.some((cell) => shown(cell).toLowerCase().includes(this.text))) && [...this.filters].every(([index, value]) => shown(row.cells[index]) === value));
    if (this.sorted.column !== null) {
      const { column, down } = this.sorted;
      const gone = (cell) => cell === null || cell === undefined;
      rows = [...rows].sort((a, b) => { const [x, y] = [a.cells[column], b.cells[column]]; return gone(x) || gone(y) ? gone(x) - gone(y) : (down ? -1 : 1) * less(x, y); });
    }
    return rows;
  }

  draw() {
    const focused = document.activeElement && this.region.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    const rows = this.rows(), begin = this.page * PAGE, part = rows.slice(begin, begin + PAGE);
    const table = make("table"), head = make("thead"), line = make("tr"), body = make("tbody");
    this.board.columns.forEach((column, index) => {
      if (!this.visible[index]) return;
      const active = this.sorted.column === index;
      const cell = make("th", null, { scope: "col", "aria-sort": active ? (this.sorted.down ? "descending" : "ascending") : "none" });
      const button = make("button", column.title + (active ? (this.sorted.down ? " ↓" : " ↑") : ""), { type: "button", "data-key": "column-" + index });
      button.addEventListener("click", () => { this.sorted = { column: index, down: active ? !this.sorted.down : column.number }; this.draw(); });
      cell.append(button);
      line.append(cell);
    });
    head.append(line);
    for (const row of part) {
      const tr = make("tr", null, row.best ? { class: "best" } : {});
      let first = true;
      this.board.columns.forEach((column, index) => {
        if (!this.visible[index]) return;
        const cell = make("td", null, column.number ? { class: "number" } : {});
        if (first) {
          const button = make("button", (row.best ? "★ " : "") + shown(row.cells[index], column.digits), { type: "button", "aria-expanded": String(this.open.has(row)), "data-key": "row-" + row.name, title: "its runs" });
          button.addEventListener("click", () => { this.open.has(row) ? this.open.delete(row) : this.open.add(row); this.draw(); });
          cell.append(button);
          first = false;
        } else cell.textContent = shown(row.cells[index], column.digits);
        tr.append(cell);
      });
      body.append(tr);
      if (this.open.has(row)) body.append(this.inside(row));
    }
    table.append(head, body);
    this.region.replaceChildren(table);
    this.status.textContent = rows.length + " of " + this.board.rows.length + " rows" + (this.board.marked ? "; ★ the best on val, by the mean of its runs" : "");
    this.turn(rows.length);
    if (focused) { const again = [...this.region.querySelectorAll("[data-key]")].find((each) => each.dataset.key === focused); if (again) again.focus(); }
  }

  inside(row) {
    const tr = make("tr", null, { class: "more" });
    const cell = make("td", null, { colspan: String(this.visible.filter(Boolean).length) });
    for (const run of row.runs) {
      const [id, seed, status, val, test, seconds, path, overrides] = run;
      const line = make("p");
      const link = make("a", id, { href: path });
      line.append(link, document.createTextNode("  seed " + shown(seed) + ", " + status + ", val " + shown(val) + ", test " + shown(test) + ", " + shown(seconds) + " s"));
      cell.append(line, make("code", overrides));
    }
    tr.append(cell);
    return tr;
  }

  turn(count) {
    this.pages.replaceChildren();
    if (count <= PAGE) return;
    const last = Math.ceil(count / PAGE) - 1;
    const button = (text, to, usable) => { const each = make("button", text, { type: "button" }); each.disabled = !usable; each.addEventListener("click", () => { this.page = to; this.draw(); }); return each; };
    this.pages.append(button("Earlier", this.page - 1, this.page > 0), make("span", "page " + (this.page + 1) + " of " + (last + 1)), button("Later", this.page + 1, this.page < last));
  }
}

function look() {
  const style = getComputedStyle(document.documentElement), of = (name) => style.getPropertyValue(name).trim();
  const axis = { labelColor: of("--ink"), titleColor: of("--ink"), gridColor: of("--rule"), domainColor: of("--quiet"), tickColor: of("--quiet"), labelFontSize: 11, titleFontSize: 12, titleFontWeight: "normal" };
  return { background: "transparent", font: "system-ui, sans-serif", view: { stroke: null }, axis, legend: { labelColor: of("--ink"), titleColor: of("--ink") }, rule: { color: of("--quiet") }, text: { color: of("--ink") } };
}

function draw(element) {
  const spec = data.charts[Number(element.dataset.chart)];
  window.vegaEmbed(element, { ...spec, autosize: { type: "fit-x", contains: "padding" } }, { renderer: "svg", actions: false, config: look(), mode: "vega-lite" });
}

document.querySelectorAll(".board").forEach((place) => new Board(place, data.boards[Number(place.dataset.board)]));
const drawn = new Set();
const seen = new IntersectionObserver((entries) => entries.forEach((entry) => { if (entry.isIntersecting && !drawn.has(entry.target)) { drawn.add(entry.target); draw(entry.target); } }), { rootMargin: "400px" });
document.querySelectorAll(".chart").forEach((element) => seen.observe(element));
dark.addEventListener("change", () => drawn.forEach(draw));
window.addEventListener("beforeprint", () => document.querySelectorAll(".chart").forEach((element) => { if (!drawn.has(element)) { drawn.add(element); draw(element); } }));
