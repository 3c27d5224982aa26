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
// Tables: those that are wider than their place say so.
const wide = document.querySelectorAll(".wide");
const measured = new ResizeObserver((entries) => {
  for (const { target } of entries) target.classList.toggle("more", target.scrollWidth > target.clientWidth + 1);
});
for (const place of wide) measured.observe(place);
// Labels: the largest segments first; moved into the picture, and hidden where they would cover another.
const arrange = (labels) => {
  const frame = labels.getBoundingClientRect(), taken = [];
  for (const text of labels.querySelectorAll("text")) {
    text.removeAttribute("visibility");
    text.removeAttribute("dx");
    let box = text.getBoundingClientRect();
    const shift = Math.max(frame.left + 2 - box.left, 0) || Math.min(frame.right - 2 - box.right, 0);
    if (shift) { text.setAttribute("dx", shift); box = text.getBoundingClientRect(); }
    const covers = taken.some((b) => box.left < b.right && b.left < box.right && box.top < b.bottom && b.top < box.bottom);
    const outside = box.left < frame.left || box.top < frame.top || box.bottom > frame.bottom;
    if (covers || outside) text.setAttribute("visibility", "hidden");
    else taken.push(box);
  }
};
const resized = new ResizeObserver((entries) => { for (const { target } of entries) arrange(target); });
for (const labels of document.querySelectorAll("svg.labels")) resized.observe(labels);
// Pictures: a click shows one larger; Escape closes, as of every dialog.
const dialog = document.querySelector("dialog");
if (dialog) {
  const large = dialog.querySelector("img");
  for (const button of document.querySelectorAll("figure button")) {
    button.addEventListener("click", () => {
      const image = button.querySelector("img");
      large.src = image.src;
      large.alt = image.alt;
      const ratio = image.naturalWidth / image.naturalHeight;
      large.style.width = `${Math.min(960, innerWidth * 0.9, innerHeight * 0.78 * ratio)}px`;
      dialog.querySelector(".labels").replaceChildren(
        ...[...button.querySelectorAll(".labels > svg")].map((label) => label.cloneNode(true)));
      dialog.querySelector("p").textContent = image.alt;
      dialog.showModal();
      arrange(dialog.querySelector(".labels"));
    });
  }
  dialog.addEventListener("click", (event) => { if (!dialog.querySelector(".stage").contains(event.target)) dialog.close(); });
}
