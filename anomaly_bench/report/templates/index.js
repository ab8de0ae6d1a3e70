
"use strict";
const AT_ONCE = 200;
const LETTER = /[\p{L}\p{N}]/u;
const collator = new Intl.Collator(undefined, { numeric: true });

/** Does a word of the text begin so? What begins with no letter may stand anywhere. */
function has(text, start) {
  if (start === "") return true;
  for (let at = text.indexOf(start); at >= 0; at = text.indexOf(start, at + 1)) {
    if (at === 0 || !LETTER.test(text[at - 1]) || !LETTER.test(start[0])) return true;
  }
  return false;
}

for (const grid of document.querySelectorAll(".grid")) {
  const [tools, input, output, all] = [".tools", "input", "output", "button"].map((name) => grid.querySelector(name));
  const table = grid.querySelector("table");
  const heads = [...table.tHead.rows[0].cells];
  const entries = [...table.tBodies].map((body) => ({ body, words: words(body), keys: [] }));
  let order = entries;
  let limit = AT_ONCE;

  function words(body) {
    const cells = [...body.rows].flatMap((row) => [...row.cells]);
    return cells.map((cell) => (cell.querySelector("summary") || cell).textContent).join(" ").toLowerCase();
  }

  function key(entry, column) {
    if (!(column in entry.keys)) {
      const cell = entry.body.rows[0].cells[column];
      const text = (cell.querySelector("summary") || cell).textContent.trim();
      entry.keys[column] = heads[column].classList.contains("number") ? parseFloat(text) : text;
    }
    return entry.keys[column];
  }

  function compare(a, b, sign) {
    const [lost, gone] = [a, b].map((value) => value === "" || Number.isNaN(value));
    if (lost || gone) return lost - gone; // what has no value comes last, whichever the order
    return sign * (typeof a === "number" ? a - b : collator.compare(a, b));
  }

  function sort(column) {
    const falling = heads[column].classList.contains("number");
    const now = heads[column].getAttribute("aria-sort");
    const next = now === null ? (falling ? "descending" : "ascending") : now === "ascending" ? "descending" : "ascending";
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[column].setAttribute("aria-sort", next);
    const sign = next === "ascending" ? 1 : -1;
    order = [...order].sort((a, b) => compare(key(a, column), key(b, column), sign));
    table.append(...order.map((entry) => entry.body));
    show();
  }

  function show() {
    const wanted = input.value.toLowerCase().split(/\s+/);
    let found = 0;
    for (const entry of order) {
      const fits = wanted.every((word) => has(entry.words, word));
      found += fits;
      entry.body.hidden = !fits || found > limit;
    }
    const shown = Math.min(found, limit);
    output.textContent = `${shown < found ? `${shown} shown, ` : ""}${found} of ${order.length}`;
    all.hidden = shown === found;
  }

  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(column));
    head.append(button);
  });
  input.addEventListener("input", show);
  all.addEventListener("click", () => {
    limit = Infinity;
    show();
  });
  tools.hidden = order.length < 6;
  show();
}
