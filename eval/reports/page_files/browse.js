"use strict";
// Browses the questions of the JSON element `answers`; `tel_edge.eval.browse.document` says what is
// in it. Data become text nodes and never markup.
(() => {
  const { element, number, turn } = paged;
  const data = JSON.parse(document.getElementById("answers").textContent);
  const root = document.querySelector("#questions .browser");
  const form = root.querySelector("form");
  const PAGE = 25;
  const UNPARSED = -2;
  const MISSING = -3;
  // Of more choices than this, those that matter are shown: right, picked, or above FEW thousandths.
  const MANY = 8;
  const FEW = 50;
  const LONG = 900;
  const PREFIX = "#questions?";
  const KINDS = { lost: "right to wrong", won: "wrong to right", other: "wrong to other wrong" };
  const DEFAULTS = {
    before: data.reference, after: data.after || data.reference,
    kind: "", category: "", difficulty: "", subject: "", words: "", page: "1",
  };

  const questions = data.categories.flatMap((category) =>
    category.ids.map((id, row) => ({
      id, category, row,
      gold: category.gold[row],
      difficulty: category.difficulty[row],
      subject: category.subject[row],
      text: category.texts[row],
      choices: category.choices[row] || [],
      words: [id, category.texts[row] || "", ...(category.choices[row] || [])].join("\n").toLowerCase(),
    })));
  let state = { ...DEFAULTS };
  let changes = [];

  // --- data ---

  function answer(question, variant) {
    const picks = question.category.picks[variant];
    const pick = picks ? picks[question.row] : MISSING;
    return { pick, permille: pick === MISSING ? [] : question.category.permille[variant][question.row] };
  }

  /** Return the questions that the two variants answer differently, the largest change first. */
  function changed(before, after) {
    const made = [];
    for (const question of questions) {
      const [one, other] = [answer(question, before), answer(question, after)];
      if (one.pick === other.pick || one.pick === MISSING || other.pick === MISSING) continue;
      const kind = one.pick === question.gold ? "lost" : other.pick === question.gold ? "won" : "other";
      made.push({ question, before: one, after: other, kind, moved: moved(one, other) });
    }
    return made.sort((one, other) => other.moved - one.moved);
  }

  /** Return the thousandths of probability that moved to other choices, -1 if that is unknown. */
  function moved(one, other) {
    if (!one.permille.length || !other.permille.length) return -1;
    return one.permille.reduce((sum, value, at) => sum + Math.abs(value - other.permille[at]), 0) / 2;
  }

  /** Return whether a change passes the filters, those named in `except` left aside. */
  function passes(change, ...except) {
    const { question } = change;
    const test = {
      kind: () => change.kind === state.kind,
      category: () => question.category.name === state.category,
      difficulty: () => question.difficulty === state.difficulty,
      subject: () => question.subject === state.subject,
      words: () => state.words.toLowerCase().split(/\s+/).every((word) => question.words.includes(word)),
    };
    return Object.keys(test).every((name) => !state[name] || except.includes(name) || test[name]());
  }

  // --- elements ---

  const percent = (permille) => (permille / 10).toFixed(1) + " %";
  const letter = (index) => String.fromCharCode(65 + index);
  const named = (pick) =>
    pick === UNPARSED ? "no answer" : pick === MISSING ? "not asked" : letter(pick);

  function card(change) {
    const { question, before, after, kind } = change;
    const size = change.moved < 0 ? "" : percent(change.moved) + " of the probability moved";
    const head = element("p", "head",
      element("strong", "kind " + kind, KINDS[kind]),
      element("span", "", named(before.pick) + " → " + named(after.pick)),
      size && element("span", "", size));
    const facts = [question.category.title, question.difficulty, question.subject, question.id];
    const place = element("p", "place", facts.filter(Boolean).join(" · "));
    return element("li", "card", head, place, text(question.text), options(change), every(question));
  }

  function text(words) {
    if (words === null) return "";
    const shown = element("p", "text", words);
    if (words.length <= LONG) return shown;
    const short = words.slice(0, LONG - 200).replace(/\S*$/, "…");
    shown.textContent = short;
    const more = element("button", "more", "Whole text");
    more.type = "button";
    more.setAttribute("aria-expanded", "false");
    more.addEventListener("click", () => {
      const open = more.getAttribute("aria-expanded") === "false";
      more.setAttribute("aria-expanded", String(open));
      more.textContent = open ? "Less" : "Whole text";
      shown.textContent = open ? words : short;
    });
    return element("div", "", shown, more);
  }

  function options({ question, before, after }) {
    const count = Math.max(question.choices.length, before.permille.length, after.permille.length,
      question.gold + 1, before.pick + 1, after.pick + 1);
    const list = element("ul", "options");
    const rest = [];
    for (let at = 0; at < count; at++) {
      const marked = at === question.gold || at === before.pick || at === after.pick;
      const most = Math.max(before.permille[at] || 0, after.permille[at] || 0);
      if (count > MANY && !marked && most < FEW) rest.push(most);
      else list.append(option(at, question, before, after));
    }
    if (rest.length) {
      const most = percent(Math.max(...rest));
      list.append(element("li", "rest", `${rest.length} other choices with at most ${most} each`));
    }
    return list;
  }

  function option(at, question, before, after) {
    const words = element("span", "words", question.choices[at] || "");
    if (at === question.gold) words.append(" ", element("span", "chip right", "✓ right answer"));
    if (at === before.pick) words.append(" ", element("span", "chip before", "picked before"));
    if (at === after.pick) words.append(" ", element("span", "chip after", "picked after"));
    const bars = element("span", "bars", bar("before", before, at), bar("after", after, at));
    return element("li", at === question.gold ? "option gold" : "option",
      element("span", "letter", letter(at)), words, bars);
  }

  function bar(name, { permille }, at) {
    if (!permille.length) return "";
    const fill = element("span", "fill");
    fill.style.width = permille[at] / 10 + "%";
    const track = element("span", "track", fill);
    track.setAttribute("aria-hidden", "true");
    return element("span", "bar " + name,
      element("span", "unseen", name + " "), track, element("span", "value", percent(permille[at])));
  }

  /** Return what all variants made of a question; filled in when it is opened. */
  function every(question) {
    const made = element("details", "every", element("summary", "", "All variants"));
    made.addEventListener("toggle", () => {
      if (made.open && made.children.length === 1) made.append(table(question));
    });
    return made;
  }

  function table(question) {
    const head = ["variant", "pick", "right answer", "its pick"].map((name, at) =>
      element("th", at ? "" : "word", name));
    const first = answer(question, data.reference).pick;
    const rows = data.variants.map((variant) => {
      const { pick, permille } = answer(question, variant);
      const share = (at) => (permille.length && at >= 0 ? percent(permille[at]) : "-");
      const mark = pick === question.gold ? " ✓" : "";
      const picked = element("td", pick === first ? "" : "otherwise", named(pick) + mark);
      return element("tr", "", element("td", "word", variant), picked,
        element("td", "", share(question.gold)), element("td", "", share(pick)));
    });
    const made = element("table", "",
      element("thead", "", element("tr", "", ...head)), element("tbody", "", ...rows));
    const wide = element("div", "wide", made);
    wide.tabIndex = 0;
    return wide;
  }

  // --- the form ---

  function fill(name, values, all) {
    const select = form.elements[name];
    const options = values.map((value) => [value.name || value, value.title || value]);
    select.replaceChildren(...(all ? [["", all], ...options] : options).map(([value, title]) => {
      const made = element("option", "", title);
      made.value = value;
      return made;
    }));
    select.value = state[name];
    if (all) select.closest("label").hidden = values.length < 2 && !state[name];
  }

  /** Offer the difficulties and subjects that occur in the chosen category. */
  function offer(name) {
    const own = questions.filter((q) => !state.category || q.category.name === state.category);
    const values = [...new Set(own.map((question) => question[name]))].filter(Boolean).sort();
    if (!values.includes(state[name])) state[name] = "";
    fill(name, values, "all");
  }

  function show() {
    offer("difficulty");
    offer("subject");
    for (const name of ["before", "after", "category"]) form.elements[name].value = state[name];
    if (form.elements.words.value !== state.words) form.elements.words.value = state.words;
    const open = changes.filter((change) => passes(change, "kind"));
    for (const radio of form.elements.kind) {
      radio.checked = radio.value === state.kind;
      const count = open.filter((change) => !radio.value || change.kind === radio.value).length;
      const title = KINDS[radio.value] || "all";
      radio.nextElementSibling.textContent = `${title} ${number(count)}`;
    }
    const found = open.filter((change) => passes(change));
    const last = Math.max(1, Math.ceil(found.length / PAGE));
    const page = Math.min(last, Math.max(1, parseInt(state.page, 10) || 1));
    state.page = String(page);
    const from = (page - 1) * PAGE;
    const cards = found.slice(from, from + PAGE);
    const list = root.querySelector(".cards");
    list.start = from + 1;
    list.replaceChildren(...cards.map(card));
    root.querySelector(".count").textContent = found.length
      ? `${number(found.length)} ${found.length === 1 ? "question" : "questions"}, ` +
        `${number(from + 1)} to ${number(from + cards.length)} shown, the largest change first`
      : "No question matches.";
    for (const name of ["before", "after"]) {
      root.querySelector(".legend ." + name).textContent = `${name}: ${state[name]}`;
    }
    for (const nav of root.querySelectorAll(".pages")) {
      turn(nav, page, last, root, (to) => change({ page: String(to) }));
    }
  }

  // --- the state, and its link ---

  function change(values) {
    const pair = state.before + "\n" + state.after;
    state = { ...state, ...values };
    for (const name of ["before", "after"]) {
      if (!data.variants.includes(state[name])) state[name] = DEFAULTS[name];
    }
    if (!data.categories.some((category) => category.name === state.category)) state.category = "";
    if (!Object.hasOwn(KINDS, state.kind)) state.kind = "";
    if (pair !== state.before + "\n" + state.after) changes = changed(state.before, state.after);
    show();
    const link = new URLSearchParams();
    for (const [name, value] of Object.entries(state)) {
      if (value !== DEFAULTS[name]) link.set(name, value);
    }
    const hash = link.size ? PREFIX + link : "#questions";
    // No entry in the history: going back leaves the page, not a filter.
    if (link.size || location.hash.startsWith(PREFIX)) history.replaceState(null, "", hash);
  }

  function restore() {
    if (!location.hash.startsWith(PREFIX)) return;
    const link = new URLSearchParams(location.hash.slice(PREFIX.length));
    const known = [...link].filter(([name]) => Object.hasOwn(DEFAULTS, name));
    change({ ...DEFAULTS, ...Object.fromEntries(known) });
    document.getElementById("questions").scrollIntoView();
  }

  fill("before", data.variants);
  fill("after", data.variants);
  fill("category", data.categories.filter((category) => category.ids.length), "all");
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", (event) => {
    event.preventDefault();
    change(DEFAULTS);
  });
  form.addEventListener("input", ({ target }) => change({ [target.name]: target.value, page: "1" }));
  window.addEventListener("hashchange", restore);
  changes = changed(state.before, state.after);
  show();
  root.hidden = false;
  restore();
})();
