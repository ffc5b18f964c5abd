// The page of `reasoner view`. The address after # is the whole state: #/VIEW?KEY=VALUE. No library.
"use strict";
const main = document.getElementById("main");
const STATUSES = ["correct", "wrong", "unparsed", "timeout", "error", "bad_reference", "masked"];
const COLOURS = ["none", "logprob", "ratio", "advantage", "version"];
let run = null; // the last /api/state
let searching = false; // "/" was pressed in a view without a search
let drawn = 0; // which drawing is current: a late answer of an earlier one is thrown away

// ------------------------------------------------------------------ small helpers
function h(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false));
  return element;
}
const place = () => {
  const [view, query] = location.hash.replace(/^#\//, "").split(/\?(.*)/s);
  return { view: view || "curves", query: new URLSearchParams(query || "") };
};
function address(view, values) {
  const query = new URLSearchParams();
  for (const [key, value] of Object.entries(values || {}))
    if (value !== "" && value !== null && value !== undefined) query.set(key, value);
  const text = query.toString();
  return `#/${view}${text ? "?" + text : ""}`;
}
async function get(path, query) {
  const response = await fetch(`api/${path}${query ? "?" + query : ""}`);
  const content = await response.json().catch(() => ({ error: `the server answered ${response.status}` }));
  if (!response.ok) throw new Error(content.error || `the server answered ${response.status}`);
  return content;
}
const number = (value, digits = 3) =>
  value === null || value === undefined ? "–" : Number.isInteger(value) ? value.toLocaleString("en") : Number(value.toPrecision(digits)).toString();
const percent = (value) => (value === null || value === undefined ? "–" : `${(100 * value).toFixed(1)} %`);
const badge = (status) =>
  h("span", { class: `status ${["correct", "wrong", "unparsed"].includes(status) ? status : "other"}` }, status || "unverified");
const fact = (label, value) => h("span", {}, `${label} `, h("b", {}, value));
function readable(text) { // prompts of chats are stored as JSON
  if (!text || !text.startsWith("[{")) return text;
  try { return JSON.parse(text).map((m) => `${m.role}: ${m.content}`).join("\n"); } catch { return text; }
}
function found(text, wanted) {
  if (!wanted) return [text];
  const at = text.toLowerCase().indexOf(wanted.toLowerCase());
  if (at < 0) return [text];
  return [text.slice(0, at), h("mark", {}, text.slice(at, at + wanted.length)), text.slice(at + wanted.length)];
}
const flags = (names) => (names || []).map((name) => h("span", { class: "status other" }, `⚑ ${name}`));

// ------------------------------------------------------------------ views
const views = {
  async curves() {
    const { sections } = await get("curves");
    if (!sections.length) return [h("p", {}, "No finished step yet: curves appear here as the run goes on.")];
    return sections.flatMap(({ title, charts }) => [
      h("h2", {}, title),
      h("div", { class: "figures" }, charts.map(chart)),
    ]);
  },

  async rollouts(query) {
    if (![...query.keys()].length && run?.steps.last !== null && run) query.set("step", run.steps.last);
    const asked = new URLSearchParams([...query].filter(([, value]) => value !== "any"));
    const form = filterForm(query);
    let page;
    try { page = await get("rollouts", asked); } catch (error) { return [form, h("div", { class: "error" }, error.message)]; }
    const pages = pager("rollouts", query, page);
    const order = query.get("sort") || "-step";
    const head = (label, column, kind) => h("th", { class: kind ?? (column ? null : "plain"), "aria-sort": order.replace("-", "") === column ? (order[0] === "-" ? "descending" : "ascending") : null },
      column ? h("button", { type: "button", title: `sort by ${label}`, onclick: () => {
        location.hash = address("rollouts", { ...Object.fromEntries(query), page: "", sort: order === "-" + column ? column : "-" + column });
      } }, label, order.replace("-", "") === column ? (order[0] === "-" ? " ↓" : " ↑") : "") : label);
    const wanted = query.get("text");
    return [form,
      h("div", { class: "summary" }, h("span", {}, h("b", {}, number(page.total)), " rollouts"),
        page.total > 0 && h("span", {}, "mean reward ", h("b", {}, number(page.reward_mean))),
        page.total > 0 && h("span", {}, "mean length ", h("b", {}, number(page.tokens_mean, 4)), " tokens"),
        Object.entries(page.statuses).sort((a, b) => b[1] - a[1]).map(([status, n]) =>
          h("a", { href: address("rollouts", { ...Object.fromEntries(query), status, page: "" }) }, badge(status), h("span", {}, number(n)))), pages),
      page.total === 0 ? h("p", {}, "Nothing matches. ", h("a", { href: "#/rollouts?step=any" }, "Show all rollouts"))
        : h("div", { class: "scroll" }, h("table", { class: "list" },
          h("thead", {}, h("tr", {}, head("step", "step", "number"), head("verdict", "status"), head("reward", "reward", "number"),
            head("advantage", "advantage", "number"), head("tokens", "tokens", "number"), head("family", "family"), head("level", "difficulty", "number"),
            head("prompt"), head("end of the completion"))),
          h("tbody", {}, page.rows.map((row) => {
            const to = address("rollout", { group: row.group_index, rollout: row.rollout });
            return h("tr", {}, h("td", { class: "number" }, row.step ?? "waits"), h("td", {}, badge(row.status)),
              h("td", { class: "number" }, number(row.reward)), h("td", { class: "number" }, number(row.advantage)),
              h("td", { class: "number" }, number(row.tokens), row.truncated ? " ✂" : ""), h("td", {}, row.family), h("td", { class: "number" }, number(row.difficulty)),
              h("td", { class: "text prompted" }, h("a", { href: address("group", { group: row.group_index }), title: "the whole group", tabindex: -1 }, found(readable(row.prompt), wanted))),
              h("td", { class: "text" }, h("a", { href: to, class: "row" }, found(row.completion, wanted))));
          })))),
      h("div", { class: "summary" }, pages && pages.cloneNode(true))];
  },

  async rollout(query) {
    const asked = new URLSearchParams({ group: query.get("group") ?? "", rollout: query.get("rollout") ?? "" });
    const row = await get("rollout", asked);
    const at = row.mates.findIndex((mate) => mate.rollout === row.rollout);
    const step = (by) => row.mates[at + by] && address("rollout", { ...Object.fromEntries(query), rollout: row.mates[at + by].rollout, token: "" });
    const colour = COLOURS.includes(query.get("colour")) ? query.get("colour") : "logprob";
    return [
      h("div", { class: "bar" }, badge(row.status), flags(row.flags),
        h("a", { href: address("group", { group: row.group_index }), "data-key": "g" }, `group ${row.group_index}`),
        step(-1) && h("a", { href: step(-1), "data-key": "p" }, "← previous"), h("span", {}, `rollout ${at + 1} of ${row.mates.length}`),
        step(1) && h("a", { href: step(1), "data-key": "n" }, "next →"),
        h("a", { href: address("task", { id: row.task_id }) }, `task ${row.task_id}`),
        row.step !== null && h("a", { href: address("rollouts", { step: row.step }) }, `step ${row.step}`)),
      facts(row), h("h3", {}, "Prompt"), h("pre", { class: "prompt card" }, readable(row.prompt)),
      chain(row.per_token, colour, query)];
  },

  async group(query) {
    const page = await get("group", new URLSearchParams({ group: query.get("group") ?? "", page: query.get("page") ?? "" }));
    const { rollouts, steps } = page;
    if (!rollouts.length) return [h("p", {}, "There is no such group (yet).")];
    const first = rollouts[0];
    const order = [...rollouts].sort((a, b) => (b.reward ?? -Infinity) - (a.reward ?? -Infinity) || a.rollout - b.rollout);
    const near = (by) => h("a", { href: address("group", { group: first.group_index + by }), "data-key": by < 0 ? "p" : "n" }, by < 0 ? "← previous group" : "next group →");
    return [h("h2", {}, `Group ${first.group_index}: ${steps[0].right} of ${steps[0].rollouts} right`),
      h("div", { class: "bar" }, first.group_index > 0 && near(-1), near(1), h("a", { href: address("task", { id: first.task_id }) }, `task ${first.task_id}`),
        first.step !== null && h("a", { href: address("rollouts", { step: first.step }) }, `step ${first.step}, ${first.fate}`), pager("group", query, page, false)),
      h("pre", { class: "prompt card" }, readable(first.prompt)), h("p", {}, `expected ${first.reference}; ${first.family}, level ${number(first.difficulty)}`),
      h("div", { class: "group" }, order.map((r) => card(r)))];
  },

  async task(query) {
    const page = await get("task", new URLSearchParams({ id: query.get("id") ?? "", page: query.get("page") ?? "" }));
    const { rollouts, steps } = page;
    if (!rollouts.length) return [h("p", {}, "There is no rollout of such a task (yet).")];
    const heading = (s) => (s.step === null ? "Waiting" : `Step ${s.step}: ${s.right} of ${s.rollouts} right, ${number(s.tokens, 4)} tokens`);
    return [h("h2", {}, `Task ${rollouts[0].task_id}, ${steps.length === 1 ? "at one step" : `at ${steps.length} steps`}`),
      h("pre", { class: "prompt card" }, readable(rollouts[0].prompt)), h("p", {}, `expected ${rollouts[0].reference}`), pager("task", query, page),
      steps.map((s) => [s, rollouts.filter((r) => r.step === s.step)]).filter(([, members]) => members.length).map(([s, members]) => [
        h("h2", {}, heading(s) + (members.length < s.rollouts ? ` (${members.length} of them on this page)` : "")),
        h("div", { class: "group" }, members.map((r) => card(r)))]),
      pager("task", query, page, false)];
  },

  async changes(query) {
    const all = run?.evaluations ?? (await get("state")).evaluations;
    if (all.length < 2) return [h("h2", {}, "What changed between two checkpoints"),
      h("p", {}, `This run has ${all.length ? "one evaluation" : "no evaluation"} with samples. To compare checkpoints on the same problems:`),
      h("pre", { class: "card" }, `reasoner eval ${run?.path ?? "RUN"} --checkpoints all --problems 100 --samples 8`),
      h("p", {}, "Tasks that come up again in training can be compared already: open a rollout and follow its task.")];
    const a = query.get("a") || all[0].name, b = query.get("b") || all[all.length - 1].name;
    const choose = (key, value) => h("label", {}, key === "a" ? "before" : "after", h("select", { name: key, onchange: (event) => {
      location.hash = address("changes", { ...Object.fromEntries(query), a, b, [key]: event.target.value, task: "" });
    } }, all.map((e) => h("option", { value: e.name, selected: e.name === value }, e.label))));
    const bar = [h("h2", {}, "What changed between two checkpoints"), h("div", { class: "filters" }, choose("a", a), choose("b", b))];
    let result;
    try { result = await get("changes", new URLSearchParams({ a, b, split: query.get("split") || "" })); } catch (error) { return [bar, h("div", { class: "error" }, error.message)]; }
    bar[1].append(h("label", {}, "split", h("select", { onchange: (event) => {
      location.hash = address("changes", { a, b, split: event.target.value });
    } }, result.splits.map((name) => h("option", { selected: name === result.split }, name)))));
    const parts = [bar, h("div", { class: "summary" }, h("span", {}, h("b", {}, number(result.problems)), " problems"),
      h("span", {}, "accuracy ", h("b", {}, `${percent(result.before)} → ${percent(result.after)}`)),
      h("span", { class: "up" }, `${result.better} better`), h("span", { class: "down" }, `${result.worse} worse`))];
    const chosen = query.get("task");
    if (chosen) {
      const problem = await get("problem", new URLSearchParams({ a, b, split: result.split, task_id: chosen }));
      parts.push(h("h2", {}, `Problem ${chosen}`), h("a", { href: address("changes", { a, b, split: result.split }) }, "← all problems"),
        h("pre", { class: "prompt card" }, readable(problem.prompt)), h("p", {}, `expected ${problem.reference}`),
        h("div", { class: "pair" }, problem.sides.map((side, i) => h("div", {}, h("h3", {}, i ? "after" : "before"), side.map((s) =>
          h("div", { class: "card" }, badge(s.status), h("div", { class: "facts" }, fact("tokens", number(s.tokens)), s.mean_logprob !== null && fact("mean logprob", number(s.mean_logprob))), h("pre", {}, s.completion)))))));
      return parts;
    }
    if (!result.problems) return [...parts, h("p", {}, "The two have no problem in common: evaluate both models on the same --tasks, with the same template.")];
    parts.push(h("div", { class: "scroll" }, h("table", { class: "list" },
      h("thead", {}, h("tr", {}, ["before", "after", "change", "tokens", "problem", "expected"].map((t, i) => h("th", { class: i < 4 ? "number" : null }, t)))),
      h("tbody", {}, result.rows.map((r) => h("tr", {}, h("td", { class: "number" }, percent(r.before)), h("td", { class: "number" }, percent(r.after)),
        h("td", { class: "number" }, h("span", { class: r.after > r.before ? "up" : r.after < r.before ? "down" : null }, `${r.after > r.before ? "+" : ""}${(100 * (r.after - r.before)).toFixed(1)}`)),
        h("td", { class: "number" }, `${number(r.tokens_before, 3)} → ${number(r.tokens_after, 3)}`),
        h("td", { class: "text" }, h("a", { class: "row", href: address("changes", { a, b, split: result.split, task: r.task_id }) }, readable(r.prompt).slice(0, 200))),
        h("td", { class: "text" }, r.reference ?? "–")))))));
    return parts;
  },

  async audit() {
    const { audit } = await get("audit");
    if (!audit) return [h("h2", {}, "Audit"), h("p", {}, "Not audited yet. This looks for reward hacking and verifier errors, and its findings appear here:"),
      h("pre", { class: "card" }, `reasoner audit ${run?.path ?? "RUN"}`)];
    return [h("h2", {}, `Audit of ${number(audit.rollouts)} rollouts`), h("p", {}, audit.conclusion),
      audit.findings.map((f) => h("div", { class: "card finding" },
        h("h3", {}, h("span", { class: `status ${f.above_line ? "wrong" : "other"}` }, f.above_line ? "above the line" : "below"), f.check.replaceAll("_", " "), h("small", { class: "prompt" }, `severity ${number(f.severity, 2)}`)),
        h("p", {}, f.conclusion), f.count > 0 && f.flagged.length > 0 && h("a", { href: address("rollouts", { step: "any", flag: f.check }) }, `${number(f.flagged.length)} flagged rollout${f.flagged.length === 1 ? "" : "s"}`),
        f.examples.map((e) => h("div", {}, h("div", { class: "facts" }, badge(e.status), fact("expected", e.reference), e.detail && fact("", e.detail),
          h("a", { href: address("rollout", { group: e.group_index, rollout: e.rollout }) }, `step ${e.step ?? "–"}, group ${e.group_index}, rollout ${e.rollout}`)),
          h("pre", {}, e.completion)))))];
  },
};

function pager(view, query, { page, pages }, keys = true) {
  if (pages < 2) return null;
  const turn = (by) => address(view, { ...Object.fromEntries(query), page: page + by || "" });
  return h("span", { class: "summary" }, page > 0 && h("a", { href: turn(-1), "data-key": keys && "p" }, "← previous"), ` page ${page + 1} of ${number(pages)} `,
    page + 1 < pages && h("a", { href: turn(1), "data-key": keys && "n" }, "next →"));
}
function chart(svg) { // ← and → choose a step, Enter or a click opens its rollouts
  const hits = () => [...figure.querySelectorAll(".hit")];
  const open = (hit) => {
    const step = /^step (\d+)/.exec(hit?.querySelector("text")?.textContent ?? "");
    if (step) location.hash = address("rollouts", { step: step[1] });
  };
  const choose = (at) => hits().forEach((hit, i) => hit.classList.toggle("on", i === at));
  const figure = h("div", { class: "figure", tabindex: 0, role: "group", onclick: (event) => open(event.target.closest?.(".hit")), onblur: () => choose(-1), onkeydown: (event) => {
    const all = hits(), at = all.findIndex((hit) => hit.classList.contains("on"));
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Enter") open(all[at]);
    if (!by) return;
    event.preventDefault();
    choose(at < 0 ? all.length - 1 : Math.min(all.length - 1, Math.max(0, at + by)));
    document.getElementById("said").textContent = figure.querySelector(".on text")?.textContent ?? "";
  } });
  figure.innerHTML = svg; // drawn by our own server, text escaped there
  figure.setAttribute("aria-label", `${figure.querySelector("svg").getAttribute("aria-label")}: left and right choose a step, Enter opens it`);
  return figure;
}
function facts(row) {
  return h("div", { class: "facts" }, fact("expected", row.reference), row.extracted !== null && fact("read as", row.extracted),
    row.detail && fact("because", row.detail), fact("reward", number(row.reward)), fact("advantage", number(row.advantage)), fact("tokens", number(row.tokens)),
    row.truncated && fact("", "cut off"), fact("level", number(row.difficulty)), fact("family", row.family), fact("oldest version", number(row.version)), fact("fate", row.fate ?? "waits"));
}
function card(r) {
  return h("div", { class: "card" }, h("div", { class: "bar" }, badge(r.status), flags(r.flags), h("a", { class: "row", href: address("rollout", { group: r.group_index, rollout: r.rollout }) }, `rollout ${r.rollout}`)),
    h("div", { class: "facts" }, fact("reward", number(r.reward)), r.advantage !== null && fact("advantage", number(r.advantage)), fact("tokens", number(r.tokens)), r.extracted !== null && fact("read as", r.extracted), r.truncated && fact("", "cut off")),
    h("pre", {}, r.completion));
}

// ------------------------------------------------------------------ filters
let unfolded = false; // on a narrow screen only the search is there until all filters are asked for
function filterForm(query) {
  const value = (key) => (query.get(key) === "any" ? "" : query.get(key) || "");
  const apply = () => {
    const values = Object.fromEntries([...new FormData(form)].map(([k, v]) => [k, v.trim()]));
    if (!Object.values(values).some(Boolean)) values.step = "any";
    const to = address("rollouts", { ...values, sort: query.get("sort") });
    if (to !== location.hash) location.hash = to;
  };
  const field = (key, label, hint) => h("label", {}, label, h("input", { name: key, value: value(key), placeholder: hint, title: "a number or a range: 3, 3..10, 3.., ..10", onchange: apply }));
  const choice = (key, label, options) => h("label", {}, label, h("select", { name: key, onchange: apply }, h("option", { value: "" }, "any"),
    Object.entries(options).map(([o, said]) => h("option", { value: o, selected: o === value(key) }, said)),
    value(key) && !(value(key) in options) && h("option", { value: value(key), selected: true }, value(key)))); // such as wrong,unparsed
  const named = (names) => Object.fromEntries(names.map((name) => [name, name]));
  const yes = { 1: "yes", 0: "no" };
  const search = h("input", { name: "text", type: "search", value: value("text"), placeholder: "in prompt and completion", id: "search", onsearch: apply, onchange: apply });
  const fold = h("button", { type: "button", class: "fold", "aria-expanded": String(unfolded), onclick: () => {
    unfolded = !unfolded;
    form.classList.toggle("folded", !unfolded);
    fold.setAttribute("aria-expanded", String(unfolded));
  } }, "Filters");
  const form = h("form", { class: unfolded ? "filters" : "filters folded", role: "search", onsubmit: (event) => { event.preventDefault(); apply(); } },
    h("label", { class: "wide" }, "text", search), fold, field("step", "step", "3..10"), choice("status", "verdict", named(STATUSES)),
    choice("family", "family", named(run?.families ?? [])), field("reward", "reward", "0..0.5"), field("tokens", "tokens", "100.."),
    field("difficulty", "level", "2..4"), field("advantage", "advantage", "..0"), field("version", "version", "0.."), choice("fate", "fate", named(run?.fates ?? [])),
    choice("truncated", "cut off", yes), choice("waiting", "waiting", yes),
    Object.keys(run?.flags ?? {}).length || value("flag") ? choice("flag", "audit flag", named(Object.keys(run?.flags ?? {}))) : null,
    h("label", {}, "task", h("input", { name: "task_id", value: value("task_id"), onchange: apply })), h("button", {}, "Show"));
  return form;
}

// ------------------------------------------------------------------ one chain, token by token
function chain(t, colour, query) {
  const versions = [...new Set(t.version.filter((v) => v !== null))].sort((a, b) => a - b);
  const shade = (i) => {
    if (!t.action[i]) return "";
    const tone = (name, share) => `background: rgb(var(--${name}) / ${Math.min(1, Math.max(0, share)) * 0.6})`;
    if (colour === "logprob") return tone("low", -t.logprob[i] / 4);
    if (colour === "ratio" && t.ratio[i] !== null) { const l = Math.log(t.ratio[i]); return tone(l < 0 ? "low" : "high", Math.abs(l) / Math.LN2); }
    if (colour === "advantage" && t.advantage !== null) return tone(t.advantage < 0 ? "low" : "high", Math.abs(t.advantage) / 2);
    if (colour === "version") return tone("high", versions.length > 1 ? 0.15 + (0.85 * versions.indexOf(t.version[i])) / (versions.length - 1) : 0.3);
    return "";
  };
  const scales = {
    none: "", logprob: [["low", 0, "certain"], ["low", 0.5, "−2"], ["low", 1, "−4 nats or less"]],
    ratio: [["low", 1, "½"], ["low", 0, "1: learner agrees with the sampler"], ["high", 1, "2"]],
    advantage: [["low", 1, "−2"], ["low", 0, "0"], ["high", 1, "+2"]],
    version: versions.length > 1 ? [["high", 0.15, `version ${versions[0]}`], ["high", 1, `${versions[versions.length - 1]}`]] : [["high", 0.3, `all sampled by version ${versions[0] ?? "–"}`]],
  };
  const gap = t.left_out_at ?? Infinity; // where tokens of a long chain are left out: numbers are the chain's own
  const token = (i) => (i < gap ? i : i + t.left_out);
  const position = (n) => (n < gap ? n : n < gap + t.left_out ? -1 : n - t.left_out);
  const readout = h("div", { class: "readout", "aria-live": "polite" }, h("i", {}, "Point at a token, or walk with j and k."));
  const describe = (i) => {
    const values = [["token", token(i)], ["text", JSON.stringify(t.text[i])]];
    if (t.action[i]) values.push(["logprob", number(t.logprob[i])], ["probability", number(Math.exp(t.logprob[i]))], ["ratio", number(t.ratio[i], 5)], ["advantage", number(t.advantage)], ["version", t.version[i]]);
    else values.push(["", "not sampled by the policy"]);
    readout.replaceChildren(...values.map(([label, value]) => h("span", {}, h("i", {}, label ? label + " " : ""), String(value))));
  };
  const spans = [];
  const body = h("pre", { class: "tokens card" });
  t.text.forEach((text, i) => {
    if (i === gap) body.append(h("p", {}, `[… ${number(t.left_out)} tokens …]`));
    const span = h("span", { style: shade(i), class: t.action[i] ? null : "prompt", "data-i": i }, text === "" ? h("span", { class: "mark" }, "·") : text.replace(/\n/g, "↵\n"));
    spans.push(span);
    body.append(span);
  });
  const show = (i, remember) => {
    if (!spans[i]) return;
    body.querySelector(".on")?.classList.remove("on");
    spans[i].classList.add("on");
    describe(i);
    if (remember) {
      query.set("token", token(i));
      history.replaceState(null, "", address("rollout", Object.fromEntries(query)));
      spans[i].scrollIntoView({ block: "nearest" });
    }
  };
  const at = (event) => { const span = event.target.closest("[data-i]"); return span ? Number(span.dataset.i) : null; };
  body.addEventListener("mouseover", (event) => { const i = at(event); if (i !== null) describe(i); });
  body.addEventListener("mouseleave", () => { const on = body.querySelector(".on"); if (on) describe(Number(on.dataset.i)); });
  body.addEventListener("click", (event) => { const i = at(event); if (i !== null) show(i, true); });
  body.walk = (by) => {
    const on = body.querySelector(".on");
    const start = on ? Number(on.dataset.i) + by : Math.max(0, t.action.indexOf(true));
    show(Math.min(spans.length - 1, Math.max(0, start)), true);
  };
  const missing = { ratio: t.ratio.every((r) => r === null), advantage: t.advantage === null };
  const wanted = query.get("token");
  if (wanted !== null && wanted !== "") queueMicrotask(() => show(position(Number(wanted)), false));
  return [h("div", { class: "bar" }, h("h3", {}, "Chain of thought"), h("span", {}, "colour: "), COLOURS.map((name) => h("button", {
    type: "button", "aria-pressed": String(name === colour), class: "colour", disabled: missing[name], title: missing[name] ? "only rollouts that were trained on have it" : null, onclick: () => {
      location.hash = address("rollout", { ...Object.fromEntries(query), colour: name });
    } }, name)), h("span", { class: "legend" }, (scales[colour] || []).map(([tone, share, label]) => h("span", { style: `background: rgb(var(--${tone}) / ${share * 0.6})` }, label)))), readout, body];
}

// ------------------------------------------------------------------ drawing
async function draw() {
  const mine = ++drawn;
  const { view, query } = place();
  document.querySelectorAll("nav a").forEach((a) => {
    const current = a.dataset.view === view || (a.dataset.view === "rollouts" && ["rollout", "group", "task"].includes(view));
    if (current) a.setAttribute("aria-current", "page"); else a.removeAttribute("aria-current");
  });
  let parts;
  try {
    if (!run) await poll();
    parts = views[view] ? await views[view](query) : [h("div", { class: "error" }, `There is no view ${view}.`)];
  } catch (error) {
    parts = [h("div", { class: "error" }, error.message)];
  }
  if (mine !== drawn) return;
  const focused = document.activeElement?.getAttribute?.("name");
  const row = document.activeElement?.matches?.("a.row") ? document.activeElement.getAttribute("href") : null;
  const figures = [...main.querySelectorAll(".figure")], figure = figures.indexOf(document.activeElement);
  const chosen = figures[figure]?.querySelector(".on text")?.textContent;
  main.replaceChildren(...parts.flat(Infinity).filter(Boolean));
  if (focused) main.querySelector(`[name="${focused}"]`)?.focus({ preventScroll: true });
  if (row) main.querySelector(`a.row[href="${CSS.escape(row)}"]`)?.focus({ preventScroll: true });
  if (figure >= 0) {
    const again = main.querySelectorAll(".figure")[figure];
    again?.focus({ preventScroll: true });
    [...(again?.querySelectorAll(".hit") ?? [])].find((hit) => hit.querySelector("text").textContent === chosen)?.classList.add("on");
  }
  if (searching) document.getElementById("search")?.focus();
  searching = false;
  document.title = `${run?.name ?? "reasoner"}: ${view}`;
  main.dataset.view = view;
  main.dataset.ready = String(mine);
}
async function poll() {
  const before = run;
  try {
    run = await get("state");
  } catch {
    document.getElementById("state").textContent = "the server has stopped: start `reasoner view` again";
    return;
  }
  document.getElementById("name").textContent = run.name;
  const { steps } = run;
  const parts = [run.step === null ? "no finished step yet" : run.total_steps ? `step ${run.step} of ${run.total_steps}` : `step ${run.step}`, `${number(run.rollouts)} rollouts`];
  if (steps.indexed < steps.files) parts.push(`reading ${steps.indexed} of ${steps.files} steps`);
  const problems = Object.entries(run.problems).map(([file, why]) => `${file}: ${why}`);
  if (problems.length) parts.push(`⚠ ${problems[0]}`);
  document.getElementById("state").textContent = parts.join(" · ");
  const changed = before && (before.step !== run.step || before.version !== run.version);
  const { view } = place();
  const typing = main.contains(document.activeElement) && /INPUT|SELECT/.test(document.activeElement.tagName);
  if (changed && !typing && ["curves", "rollouts"].includes(view)) {
    const y = scrollY;
    await draw();
    scrollTo(0, y);
  }
}
function rows(by) {
  const links = [...main.querySelectorAll("a.row, .figure[tabindex]")];
  if (!links.length) return;
  const at = links.indexOf(document.activeElement);
  links[Math.min(links.length - 1, Math.max(0, at < 0 ? 0 : at + by))].focus();
}
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const field = /INPUT|SELECT|TEXTAREA/.test(event.target.tagName);
  if (event.key === "Escape" && field) return void event.target.blur();
  if (field || document.getElementById("help").open) return;
  const walk = main.querySelector(".tokens")?.walk ?? rows;
  const link = main.querySelector(`a[data-key="${CSS.escape(event.key)}"]`);
  if (event.key === "?") document.getElementById("help").showModal();
  else if ("1234".includes(event.key)) location.hash = ["#/curves", "#/rollouts", "#/changes", "#/audit"][event.key - 1];
  else if (event.key === "/") {
    event.preventDefault();
    const search = document.getElementById("search");
    if (search) search.focus(); else { searching = true; location.hash = "#/rollouts?step=any"; }
  } else if (event.key === "j") walk(1);
  else if (event.key === "k") walk(-1);
  else if (event.key === "c") {
    const buttons = [...main.querySelectorAll("button.colour:not([disabled])")];
    const on = buttons.findIndex((b) => b.getAttribute("aria-pressed") === "true");
    buttons[(on + 1) % buttons.length]?.click();
  } else if (link) link.click();
});
document.getElementById("help-button").addEventListener("click", () => document.getElementById("help").showModal());
document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); });
addEventListener("hashchange", () => { draw().then(() => scrollTo(0, 0)); });
draw();
setInterval(() => { if (!document.hidden) poll(); }, 2000);
