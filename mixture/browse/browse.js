"use strict";
// A gallery's filters, whose state is the address's fragment (#q=dog&format=choice), and the keys of all pages.

function gallery(form) {
  const list = document.getElementById("cards");
  const records = JSON.parse(document.getElementById("records").textContent);
  const items = Array.from(list.children, (item, at) => ({ item, at, record: records[at] }));
  for (const { record } of items) record.text = record.text.toLowerCase();
  const controls = Array.from(form.querySelectorAll("[data-kind]"));
  let shown = items;

  const tests = {
    text: (value) => {
      const words = value.toLowerCase().split(/\s+/).filter(Boolean);
      return (record) => words.every((word) => record.text.includes(word));
    },
    is: (value, key) => (record) => {
      const own = record[key];
      return Array.isArray(own) ? own.includes(value) : own !== null && own !== undefined && String(own) === value;
    },
    least: (value, key) => (record) => typeof record[key] === "number" && record[key] >= Number(value),
    most: (value, key) => (record) => typeof record[key] === "number" && record[key] <= Number(value),
  };

  function apply() {
    const set = controls.filter((control) => control.value !== "");
    const wanted = set.filter((c) => c.dataset.kind in tests).map((c) => tests[c.dataset.kind](c.value, c.dataset.key));
    const order = form.elements.order.value;
    shown = items.filter(({ record }) => wanted.every((test) => test(record)));
    shown.sort((a, b) => (order ? b.record[order] - a.record[order] : 0) || a.at - b.at);
    for (const { item } of items) item.hidden = true;
    for (const { item } of shown) {
      item.hidden = false;
      list.append(item);
    }
    document.getElementById("shown").textContent = `${shown.length.toLocaleString("en")} shown`;
    const state = new URLSearchParams(set.map((control) => [control.name, control.value]));
    history.replaceState(null, "", `#${state}`);
  }

  function read() {
    const state = new URLSearchParams(location.hash.slice(1));
    for (const control of controls) control.value = state.get(control.name) ?? "";
    apply();
  }

  function columns() {
    const first = shown[0].item.getBoundingClientRect().top;
    const wrapped = shown.findIndex(({ item }) => item.getBoundingClientRect().top > first + 1);
    return wrapped < 1 ? shown.length : wrapped;
  }

  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(apply));
  window.addEventListener("hashchange", read);
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, select");
    if (event.key === "Escape") {
      form.reset();
      event.target.blur();
    } else if (event.key === "/" && !typing) {
      event.preventDefault();
      form.elements.q.focus();
    } else if (event.key.startsWith("Arrow") && (!typing || (event.key === "ArrowDown" && typing.type === "search"))) {
      if (!shown.length || event.altKey || event.ctrlKey || event.metaKey) return;
      const at = shown.findIndex(({ item }) => item.contains(document.activeElement));
      const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns(), ArrowUp: -columns() }[event.key];
      const next = at < 0 ? 0 : Math.min(Math.max(at + step, 0), shown.length - 1);
      event.preventDefault();
      shown[next].item.querySelector("a").focus();
    }
  });
  read();
}

function sample() {
  const go = { ArrowLeft: "before", ArrowRight: "after", g: "up" };
  document.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.target.closest("input")) return;
    const link = document.getElementById(go[event.key] ?? "");
    if (link) link.click();
  });
  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      const source = document.getElementById(button.dataset.copy);
      getSelection().selectAllChildren(source); // what a browser that refuses leaves to Ctrl-C
      try {
        await navigator.clipboard.writeText(source.textContent);
        button.textContent = "copied";
      } catch {
        button.textContent = document.execCommand("copy") ? "copied" : "selected";
      }
    });
  }
  for (const round of document.querySelectorAll(".rounds .boxed")) {
    const light = (on) => {
      for (const svg of document.querySelectorAll(".frame svg")) svg.classList.toggle("dim", on);
      for (const box of document.querySelectorAll(`.frame g[data-round="${round.dataset.round}"]`)) box.classList.toggle("lit", on);
    };
    round.tabIndex = 0;
    for (const name of ["mouseenter", "focus"]) round.addEventListener(name, () => light(true));
    for (const name of ["mouseleave", "blur"]) round.addEventListener(name, () => light(false));
  }
}

const form = document.getElementById("filters");
if (form) gallery(form);
if (document.body.classList.contains("sample")) sample();
