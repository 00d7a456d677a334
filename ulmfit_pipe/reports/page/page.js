"use strict";
// Sorting of tables, and the choice of texts: a list, a cell of the confusion matrix, words. Without it all is readable.
for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("thead th").forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const rising = head.getAttribute("aria-sort") ? head.getAttribute("aria-sort") !== "ascending" : !head.classList.contains("number");
      for (const other of table.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      const body = table.tBodies[0];
      const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const compare = (a, b) => (head.classList.contains("number") ? (Number(value(a)) || 0) - (Number(value(b)) || 0) : value(a).localeCompare(value(b)));
      [...body.rows].sort((a, b) => (rising ? compare(a, b) : compare(b, a))).forEach((row) => body.append(row));
    });
  });
}

const list = document.getElementById("texts");
if (list) {
  const texts = [...list.children], search = document.getElementById("search"), clear = document.getElementById("clear");
  const lists = [...document.querySelectorAll("[data-list]")], cells = [...document.querySelectorAll("button[data-cell]")];
  const more = document.getElementById("more"), first = 10;
  const state = { list: "wrong", cell: null, all: false };

  const show = () => {
    const words = search.value.trim().toLocaleLowerCase();
    const narrowed = state.cell !== null || words !== "";
    if (!narrowed) texts.sort((a, b) => a.dataset[state.list] - b.dataset[state.list] || 0).forEach((text) => list.append(text));
    let count = 0;
    for (const text of texts) {
      const fits = state.cell !== null ? text.dataset.cell === state.cell : words !== "" || state.list in text.dataset;
      const found = fits && text.textContent.toLocaleLowerCase().includes(words);
      count += found;
      text.hidden = !found || (!state.all && count > first);
    }
    more.hidden = state.all || count <= first;
    more.textContent = `show all ${count}`;
    for (const button of lists) button.setAttribute("aria-pressed", String(!narrowed && button.dataset.list === state.list));
    for (const button of cells) button.setAttribute("aria-pressed", String(button.dataset.cell === state.cell));
    const cell = cells.find((button) => button.dataset.cell === state.cell);
    const what = cell ? cell.title || `${cell.closest("tr").cells[0].textContent} taken for ${cell.closest("tr").cells[1].textContent}` : "";
    document.getElementById("shown").textContent = `${count} ${count === 1 ? "text" : "texts"}${what ? ` (${what})` : narrowed ? ` of the ${texts.length} texts in this page` : ""}`;
    clear.hidden = !narrowed;
  };
  const reset = () => { Object.assign(state, { cell: null, all: false }); search.value = ""; show(); };

  for (const button of lists) button.addEventListener("click", () => { state.list = button.dataset.list; reset(); });
  for (const button of cells) {
    button.addEventListener("click", () => {
      Object.assign(state, { cell: state.cell === button.dataset.cell ? null : button.dataset.cell, all: false });
      show();
      if (state.cell !== null) document.getElementById("mistakes").scrollIntoView();
    });
  }
  search.addEventListener("input", show);
  clear.addEventListener("click", reset);
  more.addEventListener("click", () => { state.all = true; show(); });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") reset(); });
  show();
}
