"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const read = (id) => JSON.parse(byId(id).textContent);

  // Charts: one after the other, with pauses in which the page can be read. `ast` evaluates without eval, which the
  // page's policy forbids.
  const options = {
    mode: "vega-lite",
    renderer: "svg",
    actions: false,
    ast: true,
    defaultStyle: false,
    tooltip: { theme: "custom", disableDefaultStyle: true },
  };
  const views = [];
  async function draw() {
    const specs = read("specs");
    let failed = 0;
    let since = performance.now();
    for (const place of document.querySelectorAll(".chart")) {
      try {
        const drawn = await window.unfuseDraw(place, specs[place.dataset.chart], options);
        views.push([place, drawn.view]);
      } catch (error) {
        failed += 1;
        place.textContent = "This chart could not be drawn; its numbers are in the table.";
        console.error(place.dataset.chart, error);
      }
      // Each pause paints the page: often enough to scroll, and no oftener.
      if (performance.now() - since > 150) {
        await new Promise((done) => setTimeout(done, 0));
        since = performance.now();
      }
    }
    document.documentElement.dataset.charts = failed ? "failed" : "drawn";
  }

  // Paper has its own width, and no time to lay charts out again: they are drawn for it before and for the screen after.
  const PAPER = { one: 690, many: 330 };
  window.addEventListener("beforeprint", () => {
    for (const [place, view] of views) {
      view.width(place.closest(".one") ? PAPER.one : PAPER.many).run();
    }
  });
  window.addEventListener("afterprint", () => window.dispatchEvent(new Event("resize")));

  // Pictures: decoded when they come near the screen; samples that share one share its text.
  const pictures = read("pictures");
  const images = [...document.querySelectorAll("img[data-media]")];
  const show = (image) => {
    if (!image.hasAttribute("src")) image.src = pictures[image.dataset.media];
  };
  const near = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (entry.isIntersecting) {
          show(entry.target);
          near.unobserve(entry.target);
        }
      }
    },
    { rootMargin: "600px" },
  );
  images.forEach((image) => near.observe(image));
  window.addEventListener("beforeprint", () => images.forEach(show));

  const viewer = byId("viewer");
  byId("table").addEventListener("click", (event) => {
    const button = event.target.closest("button.picture");
    if (!button) return;
    const [small, large] = [button.querySelector("img"), viewer.querySelector("img")];
    show(small);
    large.src = small.src;
    large.alt = small.alt;
    viewer.querySelector("p").textContent = small.alt;
    viewer.showModal();
  });

  // The table: sorted by its column's buttons, searched by one field.
  const table = byId("table");
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const runCell = heads.findIndex((head) => head.textContent === "run");
  const rows = [...body.rows].map((element, index) => ({
    element,
    index,
    text: element.textContent.toLowerCase(),
    run: runCell < 0 ? "" : element.cells[runCell].textContent.replace(/^\S+\s+/, "").trim(),
    cells: [...element.cells].map((cell) =>
      cell.classList.contains("number")
        ? cell.dataset.value === undefined ? null : Number(cell.dataset.value)
        : cell.textContent.trim(),
    ),
  }));
  const compare = new Intl.Collator(undefined, { numeric: true }).compare;
  let order = "";

  function sortBy(column) {
    const down = heads[column].getAttribute("aria-sort") === "ascending";
    heads.forEach((head) => head.setAttribute("aria-sort", "none"));
    heads[column].setAttribute("aria-sort", down ? "descending" : "ascending");
    const sign = down ? -1 : 1;
    rows.sort((a, b) => {
      const [x, y] = [a.cells[column], b.cells[column]];
      // What was not measured comes last, whichever way the others go.
      if (x === null || y === null) return (x === null) - (y === null) || a.index - b.index;
      return sign * (typeof x === "number" ? x - y : compare(x, y)) || a.index - b.index;
    });
    body.append(...rows.map((row) => row.element));
    order = `, sorted by ${heads[column].textContent.trim()}, ${down ? "descending" : "ascending"}`;
    tell();
  }
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => sortBy(column)));

  const search = byId("search");
  const run = byId("run");
  function filter() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) {
      const found = words.every((word) => row.text.includes(word)) && (!run || !run.value || row.run === run.value);
      row.element.hidden = !found;
    }
    tell();
  }
  function tell() {
    const shown = rows.filter((row) => !row.element.hidden).length;
    byId("count").textContent = (shown === rows.length ? `${shown} rows` : `${shown} of ${rows.length} rows`) + order;
  }
  search.addEventListener("input", filter);
  if (run) run.addEventListener("change", filter);
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  filter();

  draw();
})();
