"use strict";
// Browses the answers of the JSON element `told`; `tel_edge.eval.care.study.written.browsed` says
// what is in it. Data become text nodes and never markup.
(() => {
  const { element, number, turn } = paged;
  const data = JSON.parse(document.getElementById("told").textContent);
  const root = document.querySelector("#answers .browser");
  const form = root.querySelector("form");
  const PAGE = 10;
  const DEFAULTS = {
    one: String(data.start[0]), other: String(data.start[1]), cause: "", kind: "", words: "",
    page: "1",
  };
  let state = { ...DEFAULTS };


  /** Return what each judge said of two answers, both orders, with the place turned to `one`. */
  function verdicts(prompt, one, other) {
    return data.judges.map((name, judge) => {
      const found = data.verdicts[judge][prompt].filter(([first, second]) =>
        (first === one && second === other) || (first === other && second === one));
      return { name, found: found.map(([first, , choice]) => ({ swapped: first !== one, choice })) };
    }).filter((of) => of.found.length);
  }

  /** Return 1 where one won, -1 where the other did, 0 for a tie, null where nobody could read it. */
  const worth = ({ swapped, choice }) =>
    choice === null ? null : choice === 0 ? 0 : (choice === 1) === swapped ? -1 : 1;

  function outcome(of) {
    const known = of.found.map(worth).filter((value) => value !== null);
    return known.reduce((sum, value) => sum + value, 0) / (known.length || 1);
  }

  const flipped = (of) =>
    of.found.length === 2 && of.found.every(({ choice }) => choice) &&
    of.found[0].choice === of.found[1].choice;

  function passes(prompt) {
    const [one, other] = [Number(state.one), Number(state.other)];
    if (state.cause && data.prompts[prompt].cause !== state.cause) return false;
    if (state.kind) {
      const said = verdicts(prompt, one, other);
      if (!said.length) return false;
      if (state.kind === "flipped" && !said.some(flipped)) return false;
      if (state.kind === "split") {
        const signs = new Set(said.map((of) => Math.sign(outcome(of))));
        if (signs.size < 2) return false;
      }
    }
    const { id, asked } = data.prompts[prompt];
    const all = [id, asked, text(one, prompt), text(other, prompt)].join("\n").toLowerCase();
    return state.words.toLowerCase().split(/\s+/).every((word) => all.includes(word));
  }

  function text(system, prompt) {
    const answer = data.answers[system][prompt];
    return answer ? answer[0] : "";
  }

  function card(prompt) {
    const { id, asked, reference } = data.prompts[prompt];
    const [one, other] = [Number(state.one), Number(state.other)];
    const more = element("details", "every", element("summary", "", "The data set's own answer"),
      element("p", "said", reference));
    const said = verdicts(prompt, one, other).map((of) => element("li", "", told(of)));
    return element("li", "card",
      element("p", "place", id),
      element("p", "asked", asked),
      element("div", "beside", half(one, prompt), half(other, prompt)),
      said.length ? element("ul", "said-by", ...said) : element("p", "units", "not judged"),
      more);
  }

  function half(system, prompt) {
    const answer = data.answers[system][prompt];
    const name = element("p", "name", data.systems[system]);
    if (!answer) return element("div", "", name, element("p", "said", "no answer"));
    if (!answer[1]) name.append(" ", element("span", "chip cut", "cut at the limit"));
    return element("div", "", name, element("p", "said", answer[0]));
  }

  function told(of) {
    const words = of.found.map((verdict) => {
      const value = worth(verdict);
      const place = verdict.swapped ? "shown second" : "shown first";
      const who = value === null ? "unreadable" : value === 0 ? "tie" : value > 0 ? "one" : "other";
      return `${who} (one ${place})`;
    });
    return `${of.name}: ${words.join(", ")}${flipped(of) ? ": a flip, counted as a tie" : ""}`;
  }

  function fill(name, values, all) {
    const select = form.elements[name];
    select.replaceChildren(...(all ? [["", all], ...values] : values).map(([value, title]) => {
      const made = element("option", "", title);
      made.value = value;
      return made;
    }));
    if (all) select.closest("label").hidden = values.length < 2;
  }

  function show() {
    for (const name of ["one", "other", "cause"]) form.elements[name].value = state[name];
    if (form.elements.words.value !== state.words) form.elements.words.value = state.words;
    for (const radio of form.elements.kind) radio.checked = radio.value === state.kind;
    const found = data.prompts.map((_, at) => at).filter(passes);
    const last = Math.max(1, Math.ceil(found.length / PAGE));
    const page = Math.min(last, Math.max(1, parseInt(state.page, 10) || 1));
    state.page = String(page);
    const from = (page - 1) * PAGE;
    const list = root.querySelector(".cards");
    list.start = from + 1;
    list.replaceChildren(...found.slice(from, from + PAGE).map(card));
    root.querySelector(".count").textContent = found.length
      ? `${number(found.length)} ${found.length === 1 ? "prompt" : "prompts"}`
      : "No prompt matches.";
    for (const nav of root.querySelectorAll(".pages")) {
      turn(nav, page, last, root, (to) => change({ page: String(to) }));
    }
  }

  function change(values) {
    state = { ...state, ...values };
    show();
  }

  const systems = data.systems.map((name, at) => [String(at), `${at + 1} ${name}`]);
  fill("one", systems);
  fill("other", systems);
  const causes = [...new Set(data.prompts.map((prompt) => prompt.cause))].filter(Boolean).sort();
  fill("cause", causes.map((cause) => [cause, cause]), "all");
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", (event) => {
    event.preventDefault();
    change(DEFAULTS);
  });
  form.addEventListener("input", ({ target }) => change({ [target.name]: target.value, page: "1" }));
  show();
  root.hidden = false;
})();
