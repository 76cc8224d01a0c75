"use strict";
// Shows the pairs of the JSON element `items` and keeps what is chosen; data become text nodes and
// never markup.
(() => {
  const data = JSON.parse(document.getElementById("items").textContent);
  const place = "tel-judge " + data.page;
  const KEYS = { 1: "first", 2: "second", 0: "tie" };
  const by = (id) => document.getElementById(id);
  const buttons = [...document.querySelectorAll("[data-choice]")];
  const chosen = kept();
  let at = Math.max(0, data.items.findIndex((item) => !chosen[item.id]));

  /** Return what was chosen before, by item, of this very page. */
  function kept() {
    try {
      const made = JSON.parse(localStorage.getItem(place) || "{}");
      const own = data.items.filter(({ id }) => Object.values(KEYS).includes(made[id]));
      return Object.fromEntries(own.map(({ id }) => [id, made[id]]));
    } catch {
      return {};
    }
  }

  function keep() {
    try {
      localStorage.setItem(place, JSON.stringify(chosen));
    } catch {
      by("lost").hidden = false;
    }
  }

  function fill(node, texts, tag) {
    const numbered = tag === "p" && texts.length > 1;
    node.replaceChildren(...texts.map((text, number) => {
      const made = document.createElement(tag);
      made.textContent = numbered ? `(${number + 1}) ${text}` : text;
      return made;
    }));
  }

  function show() {
    const item = data.items[at];
    fill(by("asked"), item.asked, "p");
    fill(by("facts"), item.facts, "li");
    fill(by("first"), item.first, "p");
    fill(by("second"), item.second, "p");
    for (const button of buttons) {
      button.setAttribute("aria-pressed", String(button.dataset.choice === chosen[item.id]));
    }
    const done = Object.keys(chosen).length;
    const all = done === data.items.length ? "all judged: download the labels" : `${done} judged`;
    by("progress").textContent = `Pair ${at + 1} of ${data.items.length}, ${all}`;
    // Not `disabled`, which would take the focus away from the one who presses it.
    by("back").setAttribute("aria-disabled", String(at === 0));
    by("on").setAttribute("aria-disabled", String(at === data.items.length - 1));
  }

  function go(by_) {
    at = Math.min(data.items.length - 1, Math.max(0, at + by_));
    show();
  }

  function choose(choice) {
    chosen[data.items[at].id] = choice;
    keep();
    go(1);
  }

  function download() {
    const rows = data.items.filter(({ id }) => chosen[id]).map(({ id }) =>
      JSON.stringify({ study: data.study, item: id, choice: chosen[id] }) + "\n");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(rows, { type: "application/jsonl" }));
    link.download = `labels-${data.page}.jsonl`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  for (const button of buttons) {
    button.addEventListener("click", () => choose(button.dataset.choice));
  }
  by("back").addEventListener("click", () => go(-1));
  by("on").addEventListener("click", () => go(1));
  by("download").addEventListener("click", download);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) go(step);
    else if (Object.hasOwn(KEYS, event.key)) choose(KEYS[event.key]);
    else return;
    event.preventDefault();
  });
  by("item").hidden = false;
  show();
})();
