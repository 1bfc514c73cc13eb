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

  // The table of all variants gets filters, and a picture whose points lead to its rows.
  const explored = document.getElementById("explore");
  let table = explored?.nextElementSibling;
  while (table && !table.matches(".scroll")) table = table.nextElementSibling;
  if (table) explore(table, [...table.querySelectorAll("tbody tr")]);

  function explore(box, rows) {
    const heads = [...box.querySelectorAll("thead tr > *")].map((head) => head.textContent.trim());
    const at = (name) => heads.findIndex((head) => head.startsWith(name));
    const text = (row, name) => read(row.cells[at(name)]);
    const bar = document.createElement("form");
    bar.className = "filters";
    bar.addEventListener("submit", (event) => event.preventDefault());
    const control = (kind, name) => {
      const label = document.createElement("label");
      const made = document.createElement(kind);
      label.append(name + " ", made);
      bar.append(label);
      made.addEventListener("input", draw);
      return made;
    };
    const choices = (name, values) => {
      const made = control("select", name);
      for (const value of values) made.append(new Option(value, value));
      return made;
    };
    const all = "all";
    const known = (name) => [all, ...new Set(rows.map((row) => text(row, name)))];
    const chosen = ["model", "kind", "gate"].filter((name) => at(name) >= 0).map((name) => [name, choices(name, known(name))]);
    const up = choices("upward", ["perplexity", "skill", "token", "request"].filter((name) => at(name) >= 0));
    const words = control("input", "words");
    words.type = "search";
    const count = document.createElement("output");
    bar.append(count);
    const NS = "http://www.w3.org/2000/svg";
    const part = (kind, attributes, inside = "") => {
      const made = document.createElementNS(NS, kind);
      for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
      made.textContent = inside;
      return made;
    };
    const picture = part("svg", { viewBox: "0 0 640 300", role: "img", class: "points" });
    box.before(bar, picture);

    function draw() {
      const shown = rows.filter((row) => {
        const fits = chosen.every(([name, made]) => made.value === all || text(row, name) === made.value);
        row.hidden = !fits || !row.textContent.toLowerCase().includes(words.value.toLowerCase());
        return !row.hidden;
      });
      count.value = `${shown.length} of ${rows.length}`;
      const y = (row) => number(text(row, up.value));
      const points = shown.filter((row) => !Number.isNaN(number(text(row, "file"))) && y(row) > 0);
      const high = Math.max(1.2, ...points.map((row) => Math.min(y(row), up.value === "perplexity" ? 5 : 1e9)));
      const low = up.value === "skill" ? 0 : Math.min(1, ...points.map(y));
      const place = (row) => [60 + 5.6 * Math.min(number(text(row, "file")), 100), 260 - 240 * Math.min(1, (y(row) - low) / (high - low))];
      picture.setAttribute("aria-label", `${up.value} against the file's share of dense's bytes: ${points.length} variants`);
      picture.replaceChildren(
        part("path", { d: "M60 20V260H630", class: "axis" }),
        part("text", { x: 345, y: 292, "text-anchor": "middle" }, "file, % of dense's bytes"),
        part("text", { x: 54, y: 24, "text-anchor": "end" }, high.toPrecision(3)),
        part("text", { x: 54, y: 262, "text-anchor": "end" }, low.toPrecision(3)),
        part("text", { x: 66, y: 14 }, up.value + (up.value === "perplexity" ? " (above 5 at the top)" : "")),
        ...[0, 25, 50, 75, 100].map((tick) => part("text", { x: 60 + 5.6 * tick, y: 275, "text-anchor": "middle" }, tick)),
        ...points.map((row) => {
          const [cx, cy] = place(row);
          const point = part("circle", { cx, cy, r: 5, tabindex: 0, class: text(row, "gate") });
          point.append(part("title", {}, `${text(row, "model")}, ${text(row, "recipe")}\n${text(row, "manifest")}`));
          const lead = () => {
            box.querySelector("tr.found")?.classList.remove("found");
            row.classList.add("found");
            row.scrollIntoView({ block: "center" });
          };
          point.addEventListener("click", lead);
          point.addEventListener("keydown", (event) => { if (event.key === "Enter") lead(); });
          return point;
        }),
      );
    }
    draw();
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
