"use strict";
// Tables: a click on a heading sorts (numbers first down, then up; cells without a value last).
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  table.querySelectorAll("thead th button").forEach((button) => {
    const heading = button.closest("th");
    const column = heading.cellIndex;
    button.addEventListener("click", () => {
      const numeric = heading.dataset.kind === "number";
      const now = heading.getAttribute("aria-sort");
      const down = now ? now === "ascending" : numeric;
      for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => row.cells[column].dataset.value;
      const compare = (a, b) => {
        const one = value(a), two = value(b);
        if (one === "" || two === "") return (one === "") - (two === "");
        const order = numeric ? Number(one) - Number(two) : one.localeCompare(two);
        return down ? -order : order;
      };
      body.append(...[...body.rows].sort(compare));
    });
  });
}
// Filters: words in the name, kind, and whether the class occurs at all.
for (const tools of document.querySelectorAll(".tools")) {
  const table = document.getElementById(tools.dataset.table);
  const [search, kind, all] = tools.querySelectorAll("input[type=search], select, input[type=checkbox]");
  const status = tools.querySelector("[role=status]");
  const apply = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of table.tBodies[0].rows) {
      const name = row.cells[0].dataset.value.toLowerCase();
      const fits = words.every((word) => name.includes(word)) &&
        (!kind.value || row.dataset.kind === kind.value) && (!all || all.checked || row.dataset.occurs === "yes");
      row.hidden = !fits;
      shown += fits ? 1 : 0;
    }
    status.textContent = `${shown} of ${table.tBodies[0].rows.length} classes`;
  };
  for (const control of [search, kind, all]) control?.addEventListener("input", apply);
  apply();
}
// Pictures: a click shows one larger; Escape closes, as of every dialog.
const dialog = document.querySelector("dialog");
if (dialog) {
  const large = dialog.querySelector("img");
  for (const button of document.querySelectorAll("figure button")) {
    button.addEventListener("click", () => {
      const image = button.querySelector("img");
      large.src = image.src;
      large.alt = image.alt;
      dialog.querySelector("p").textContent = image.alt;
      dialog.showModal();
    });
  }
  dialog.addEventListener("click", (event) => { if (event.target !== large) dialog.close(); });
}
