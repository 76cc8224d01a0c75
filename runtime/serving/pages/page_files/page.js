"use strict";
// What the service says becomes text nodes and never markup.
(() => {
  const EVERY = 2000;
  const PATIENCE = 5000;
  const SHORT = 12;
  const STATES = {
    ready: ["Ready", "questions are answered"],
    starting: ["Starting", "the engine is not ready yet"],
    draining: ["Draining", "what waits is answered, nothing new is taken"],
  };
  const at = (id) => document.getElementById(id);
  const form = at("ask");
  const fields = form.elements;
  const ask = form.querySelector(".main");
  let models = [];
  let listed = null;
  // What is asked of where nothing was chosen.
  let first = "";
  let heard = "";
  let timer = 0;
  let refreshing = false;

  /** An answer of the service that is none, or, without a status, no answer of it at all. */
  class Refused extends Error {
    constructor(message, status = 0, code = "", after = null) {
      super(message);
      Object.assign(this, { status, code, after });
    }
  }

  async function call(path, options = {}) {
    const key = fields.key.value.trim();
    const headers = { ...options.headers, ...(key && { authorization: "Bearer " + key }) };
    let response, body;
    try {
      response = await fetch(path, { ...options, headers });
      body = await response.text();
    } catch {
      throw new Refused("The service cannot be reached.");
    }
    try {
      body = JSON.parse(body);
    } catch {
      body = {};
    }
    if (response.ok) return body;
    if (response.status === 401) fields.key.closest("details").open = true;
    const { message = response.statusText, code = "" } = body.error || {};
    throw new Refused(message, response.status, code, response.headers.get("retry-after"));
  }

  // --- elements ---

  function element(tag, className, ...children) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    made.append(...children);
    return made;
  }

  function facts(list, rows) {
    list.replaceChildren(...rows.filter(Boolean).map(([name, ...values]) =>
      element("div", "", element("dt", "", name), element("dd", "", ...values))));
  }

  function digest(whole) {
    const made = element("code", "", whole.slice(0, SHORT));
    made.title = whole;
    return made;
  }

  const number = (value) => value.toLocaleString("en");
  const percent = (share) => (100 * share).toFixed(1) + " %";
  const letter = (index) => String.fromCharCode(65 + index);
  const milliseconds = (value) => value.toFixed(1) + " ms";

  // --- what answers, and the load ---

  function say(kind, word, rest) {
    // Only what changes, or it would be read aloud every two seconds.
    const state = at("state");
    if (state.textContent === `${word}: ${rest}`) return;
    state.className = kind;
    state.replaceChildren(element("strong", "", word + ":"), " ", element("span", "", rest));
  }

  /** Show the figures of now, and again later, as long as somebody sees them. */
  async function refresh() {
    if (refreshing || document.visibilityState !== "visible") return;
    refreshing = true;
    clearTimeout(timer);
    try {
      const told = await call("v1/status", { signal: AbortSignal.timeout(PATIENCE) });
      show(told);
      if (told.bundle && told.bundle.digest !== listed) await list(told.bundle);
    } catch (error) {
      const since = heard && `; these figures are of ${heard}`;
      say("away", error.status ? "No figures" : "Not reachable",
        (error.status ? error.message : `asked again every ${EVERY / 1000} s`) + since);
      document.body.className = "away-now";
    }
    refreshing = false;
    timer = setTimeout(refresh, EVERY);
  }

  function show({ status, version, bundle, load, answered, refused, restarts }) {
    heard = new Date().toLocaleTimeString();
    document.body.className = "";
    say(status, ...STATES[status]);
    at("version").textContent = "tel-edge " + version;
    const now = load || { waiting: 0, waiting_tokens: 0, flows: 0, running_tokens: 0 };
    facts(at("load"), [
      ["Questions waiting", number(now.waiting)],
      ["Tokens waiting", number(now.waiting_tokens)],
      ["Tokens in this decode", number(now.running_tokens)],
      ["Flows", number(now.flows)],
      ["Tokens a second", load ? number(Math.round(load.tokens_per_second)) : "-"],
      ["Questions answered", number(answered)],
      ["Questions refused", number(refused)],
      ["Engine restarts", number(restarts)],
    ]);
    if (!bundle) return;
    const adapters = Object.entries(bundle.adapters);
    facts(at("bundle"), [
      ["Bundle", digest(bundle.digest)],
      ["Backbone", bundle.backbone],
      ["File", bundle.file],
      ["Engine", bundle.engine],
      ["Context", number(bundle.context) + " tokens"],
      ...adapters.map(([name, whole]) => ["Adapter " + name, digest(whole)]),
      !adapters.length && ["Adapters", "none"],
    ]);
  }

  /** Offer the models of the bundle that answers now; keep what was chosen. */
  async function list(bundle) {
    const chosen = fields.model.value;
    models = (await call("v1/models")).data;
    listed = bundle.digest;
    const titles = {
      auto: bundle.auto ? "auto: the service chooses" : "auto: this bundle has no router",
      [bundle.backbone]: bundle.backbone + ": no adapter",
    };
    fields.model.replaceChildren(...models.map(({ id }) => {
      const made = element("option", "", titles[id] || id);
      made.value = id;
      made.disabled = id === "auto" && !bundle.auto;
      return made;
    }));
    const ids = models.map(({ id }) => id);
    const open = Object.keys(bundle.adapters).find((name) => !labels(name));
    first = bundle.auto ? "auto" : open || bundle.backbone;
    fields.model.value = ids.includes(chosen) ? chosen : first;
    hint();
  }

  const labels = (name) => (models.find(({ id }) => id === name) || {}).labels;

  function hint() {
    const own = labels(fields.model.value);
    fields.choices.disabled = Boolean(own);
    at("hint").textContent = own
      ? `${fields.model.value} always answers with one of ${own.join(" ")}.`
      : "One a line, 2 to 16.";
  }

  // --- a question ---

  const lines = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);

  async function answer() {
    if (ask.getAttribute("aria-disabled") === "true") return;
    const place = at("answer");
    const model = fields.model.value;
    const given = fields.choices.disabled ? [] : lines(fields.choices.value);
    const body = { question: fields.question.value, ...(model && { model }) };
    if (given.length) body.choices = given;
    // Not `disabled`, which would take the focus away from the one who presses it.
    ask.setAttribute("aria-disabled", "true");
    ask.textContent = "Asking …";
    place.setAttribute("aria-busy", "true");
    try {
      const made = await call("v1/answer", {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify(body),
      });
      place.replaceChildren(...answered(made, given.length ? given : labels(made.adapter || model)));
    } catch (error) {
      place.replaceChildren(wrong(error));
    }
    place.setAttribute("aria-busy", "false");
    ask.textContent = "Ask";
    ask.setAttribute("aria-disabled", "false");
    place.scrollIntoView({ block: "nearest" });
    refresh();
  }

  function wrong({ message, status, code, after }) {
    const made = element("p", "error", element("strong", "", "No answer. "), message);
    const rest = [status && `${status} ${code}`.trim(), after && `come again in ${after} s`];
    if (status) made.append(" (" + rest.filter(Boolean).join(", ") + ")");
    return made;
  }

  function answered(made, names = []) {
    const options = made.probabilities.map((share, index) => {
      const fill = element("span", "fill");
      fill.style.width = percent(share).replace(" ", "");
      const track = element("span", "track", fill);
      track.setAttribute("aria-hidden", "true");
      return element("li", index === made.index ? "best" : "",
        element("span", "letter", letter(index)), element("span", "words", names[index] || ""),
        track, element("span", "value", percent(share)));
    });
    const figures = element("dl");
    const adapter = made.adapter ? [made.adapter + " ", digest(made.adapter_digest)] : ["none"];
    facts(figures, [
      ["Adapter", ...adapter],
      made.route_probability !== undefined && ["Chosen with", percent(made.route_probability)],
      ["Bundle", digest(made.bundle)],
      ["Questions in its decode", number(made.packed)],
      ["Waited", milliseconds(made.queue_ms)],
      ["Engine", milliseconds(made.engine_ms)],
      ["Probability of all options", percent(made.mass)],
    ]);
    return [
      element("h3", "", `${letter(made.index)}: ${made.answer}`),
      element("ol", "options", ...options),
      figures,
    ];
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    answer();
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  fields.model.addEventListener("change", hint);
  fields.key.addEventListener("change", refresh);
  at("example").addEventListener("click", () => {
    fields.question.value = fields.question.placeholder;
    fields.choices.value = fields.choices.placeholder;
    if (fields.choices.disabled) fields.model.value = first;
    hint();
    ask.focus();
  });
  document.addEventListener("visibilitychange", refresh);
  hint();
  refresh();
})();
