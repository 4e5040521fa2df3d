"use strict";
(() => {
  const content = JSON.parse(document.getElementById("content").textContent);
  const filters = ["data", "backend", "task"].map((name) => document.getElementById(`filter-${name}`));
  const board = document.getElementById("board");
  const views = new Map();

  const chosen = () => Object.fromEntries(filters.map((select) => [select.id.slice("filter-".length), select.value]));
  const passes = (row, wanted) =>
    (!wanted.data || row.data === wanted.data) && (!wanted.backend || row.backend === wanted.backend);
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function config() {
    const text = colour("--text"), line = colour("--line"), soft = colour("--soft");
    return {
      background: "transparent",
      font: "system-ui, sans-serif",
      view: { stroke: null },
      axis: { labelColor: soft, titleColor: soft, gridColor: line, domainColor: line, tickColor: line },
      legend: { labelColor: soft, titleColor: soft, layout: { bottom: { direction: "vertical", margin: 8 } } },
      title: { color: text },
    };
  }

  const datasetOf = (id) => (id.startsWith("task-") ? "scores" : id.startsWith("flips-") ? "flips" : "rows");
  const rowsOf = (id, wanted) => content.datasets[datasetOf(id)].filter((row) => passes(row, wanted));
  const feed = (id, wanted) => views.get(id).data(datasetOf(id), rowsOf(id, wanted)).resize().runAsync();

  async function draw() {
    const wanted = chosen();
    for (const [id, spec] of Object.entries(content.specs)) {
      const filled = { ...spec, datasets: { ...spec.datasets, [datasetOf(id)]: rowsOf(id, wanted) } };
      views.get(id)?.finalize();
      const element = document.getElementById(id);
      const { view } = await vegaEmbed(element, filled, { actions: false, renderer: "svg", config: config() });
      views.set(id, view);
    }
    document.body.dataset.drawn = "true";
  }

  function filterPage() {
    const wanted = chosen();
    let shown = 0, mini = false;
    for (const row of board.tBodies[0].rows) {
      row.hidden = !passes(row.dataset, wanted);
      shown += !row.hidden;
      mini ||= !row.hidden && row.classList.contains("mini");
    }
    for (const cell of document.querySelectorAll("th[data-task], td[data-task], figure[data-task]")) {
      cell.hidden = Boolean(wanted.task) && cell.dataset.task !== wanted.task;
    }
    for (const figure of document.querySelectorAll("figure[data-data]")) {
      figure.hidden = !passes(figure.dataset, wanted);
    }
    document.getElementById("count").textContent = `${shown} of ${board.tBodies[0].rows.length} rows`;
    document.getElementById("mini-note").hidden = !mini;
    return wanted;
  }

  function sortBy(header, direction) {
    const index = header.cellIndex, numeric = header.dataset.kind === "number";
    const sign = direction === "ascending" ? 1 : -1;
    const key = (row) => (numeric ? row.cells[index].dataset.value : row.cells[index].textContent.trim());
    const rows = [...board.tBodies[0].rows].sort((one, other) => {
      const [a, b] = [key(one), key(other)];
      if (!a || !b) return Boolean(b) - Boolean(a); // what did not run stands last either way
      return sign * (numeric ? a - b : a.localeCompare(b));
    });
    for (const cell of header.parentNode.cells) cell.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", direction);
    board.tBodies[0].append(...rows);
  }

  for (const header of board.tHead.rows[0].cells) {
    header.querySelector("button").addEventListener("click", () => {
      const first = header.dataset.kind === "number" ? "descending" : "ascending";
      const second = first === "descending" ? "ascending" : "descending";
      sortBy(header, header.getAttribute("aria-sort") === first ? second : first);
    });
  }
  for (const select of filters) {
    select.addEventListener("change", async () => {
      const wanted = filterPage();
      const column = wanted.task ? `th[data-task="${wanted.task}"]` : 'th[data-column="score"]';
      if (select.id === "filter-task") sortBy(board.querySelector(column), "descending");
      await Promise.all([...views.keys()].map((id) => feed(id, wanted)));
      window.dispatchEvent(new Event("resize")); // charts that were hidden take their width now
    });
  }
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  filterPage();
  draw();
})();
