"use strict";
// Tables sort by a click on a heading: up, down, and back to how they came. What is empty stays last.
(() => {
  const UNITS = { B: 1, kB: 1e3, MB: 1e6, GB: 1e9 };
  const NUMBER = /^(?:collapsed \()?[×±<>~+]*([−-]?[\d,]*\.?\d+(?:e[+-]?\d+)?)\s*(?:([kMG]?B)\b)?/;
  const read = (cell) => cell.textContent.trim();
  const number = (text) => {
    const found = NUMBER.exec(text);
    return found ? Number(found[1].replace("−", "-").replaceAll(",", "")) * (UNITS[found[2]] ?? 1) : NaN;
  };
  const empty = (text) => text === "" || text === "–";

  function order(column, rows, sign) {
    const keys = new Map(rows.map((row) => [row, read(row.cells[column])]));
    const numeric = rows.every((row) => empty(keys.get(row)) || !Number.isNaN(number(keys.get(row))));
    return [...rows].sort((one, other) => {
      const [a, b] = [keys.get(one), keys.get(other)];
      if (empty(a) || empty(b)) return empty(a) - empty(b);
      return sign * (numeric ? number(a) - number(b) : a.localeCompare(b, "en", { numeric: true }));
    });
  }

  for (const table of document.querySelectorAll("main table")) {
    const body = table.tBodies[0];
    if (!body || body.rows.length < 3 || !table.querySelector("td.number")) continue;
    const came = [...body.rows];
    for (const heading of table.tHead.rows[0].cells) {
      if (!heading.childNodes.length) continue;
      const button = document.createElement("button");
      button.type = "button";
      button.title = "Sort";
      button.append(...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", () => {
        const next = { ascending: "descending", descending: null }[heading.ariaSort] ?? null;
        const wanted = heading.ariaSort === null ? "ascending" : next;
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        if (wanted) heading.setAttribute("aria-sort", wanted);
        const sign = wanted === "descending" ? -1 : 1;
        body.append(...(wanted ? order(heading.cellIndex, came, sign) : came));
      });
    }
  }

  // The contents are open where there is room beside the text, and show where the reader is.
  const contents = document.querySelector("#contents details");
  contents.open = matchMedia("(min-width: 75rem)").matches;
  const links = new Map([...contents.querySelectorAll("a")].map((link) => [link.hash.slice(1), link]));
  const headings = [...document.querySelectorAll("main :is(h2, h3)[id]")];
  let current = null;
  const follow = () => {
    const above = headings.filter((heading) => heading.getBoundingClientRect().top < 120).pop();
    const link = above ? links.get(above.id) : null;
    if (link === current) return;
    current?.removeAttribute("aria-current");
    link?.setAttribute("aria-current", "true");
    if (link && contents.open) contents.parentElement.scrollTop = link.offsetTop - innerHeight / 3;
    current = link;
  };
  let waiting = false;
  addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; follow(); });
  }, { passive: true });
  for (const link of contents.querySelectorAll("a")) {
    link.addEventListener("click", () => { if (!matchMedia("(min-width: 75rem)").matches) contents.open = false; });
  }
})();
