"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const field = (id) => document.getElementById(id);
const PAGE = 25, SAMPLES = 40;
const state = { metric: null, page: 0 };

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

const value = (problem) => state.metric ? problem.values[state.metric] : problem.n ? problem.c / problem.n : undefined;
const wantedSamples = () => state.metric ? Number(state.metric.match(/\d+$/)[0]) : Infinity;

function matches(problem) {
  const which = field("which").value;
  if (which === "mixed" && !(problem.c > 0 && problem.c < problem.n)) return false;
  if (which === "never" && problem.c > 0) return false;
  if (which === "always" && problem.c < problem.n) return false;
  const words = field("search").value.toLowerCase();
  return !words || problem.id.toLowerCase().includes(words) || problem.prompt.toLowerCase().includes(words)
    || problem.samples.some((sample) => sample.text.toLowerCase().includes(words));
}

function chosen() {
  const found = data.splits[field("split").value].filter(matches);
  const order = field("order").value;
  if (order !== "file") {
    const sign = order === "low" ? 1 : -1;
    found.sort((a, b) => sign * ((value(a) ?? 2) - (value(b) ?? 2)));
  }
  return found;
}

function bars(problem) {
  const box = element("div");
  const most = Math.max(1, problem.n);
  for (const [key, votes, right] of problem.votes) {
    const row = element("div", "bar");
    const label = element("span", "key-text", key === "" ? "no answer" : key);
    label.title = label.textContent;
    const track = element("span", "track");
    const fill = element("span", right >= 0.5 ? "right" : "");
    fill.style.width = `${(100 * votes) / most}%`;
    track.append(fill);
    row.append(label, track, element("span", "facts", `${votes}, ${right >= 0.5 ? "right" : "wrong"}`));
    box.append(row);
  }
  return box;
}

function sampleBox(sample) {
  const box = element("div", "sample");
  box.append(element("span", `status ${sample.status === "correct" ? "correct" : "other"}`, sample.status ?? "not graded"));
  const facts = [` sample ${sample.first}`, `${sample.tokens} tokens`];
  if (sample.count > 1) facts.push(`${sample.count} of all samples say the same`);
  if (sample.key !== null) facts.push(`answer ${sample.key}`);
  if (sample.truncated) facts.push("cut off");
  if (sample.point) facts.push(sample.point);
  box.append(element("span", "facts", facts.join(" · ")), element("pre", "", sample.text));
  return box;
}

function fill(inside, problem) {
  inside.append(element("p", "", problem.reference === null ? `task ${problem.id}` : `task ${problem.id} · expected ${problem.reference}`));
  inside.append(bars(problem));
  const among = problem.samples.filter((sample) => sample.first < wantedSamples() && !(state.metric && sample.point));
  let shown = 0;
  const more = element("button", "", "");
  more.type = "button";
  const show = () => {
    for (const sample of among.slice(shown, shown + SAMPLES)) inside.insertBefore(sampleBox(sample), more);
    shown = Math.min(among.length, shown + SAMPLES);
    more.hidden = shown === among.length;
    more.textContent = `Show more (${among.length - shown} left)`;
  };
  more.addEventListener("click", show);
  inside.append(more);
  show();
}

function problemBox(problem) {
  const box = element("details", "problem");
  const summary = element("summary");
  const at = value(problem);
  summary.append(element("span", "value", at === undefined ? "–" : at.toFixed(2)), element("span", "what", problem.prompt),
    element("small", "", `${problem.c} of ${problem.n} right`));
  box.append(summary);
  box.addEventListener("toggle", () => {
    if (!box.open || box.querySelector(".inside")) return;
    const inside = element("div", "inside");
    fill(inside, problem);
    box.append(inside);
  });
  return box;
}

function draw() {
  const found = chosen();
  const pages = Math.max(1, Math.ceil(found.length / PAGE));
  state.page = Math.min(state.page, pages - 1);
  field("list").replaceChildren(...found.slice(state.page * PAGE, (state.page + 1) * PAGE).map(problemBox));
  field("page").textContent = `page ${state.page + 1} of ${pages}, ${found.length} problems`;
  field("previous").disabled = state.page === 0;
  field("next").disabled = state.page + 1 >= pages;
}

function restart() {
  state.page = 0;
  draw();
}

function choose(point) {
  const action = JSON.parse(point.dataset.action);
  if (!(action.split in data.splits)) return;
  for (const other of document.querySelectorAll(".point.chosen")) other.classList.remove("chosen");
  point.classList.add("chosen");
  state.metric = action.metric;
  field("split").value = action.split;
  if (field("order").value === "file") field("order").value = "low";
  const k = wantedSamples();
  field("chosen").textContent = `${point.querySelector("title").textContent}. Below: the same quantity for each problem, `
    + `and the first ${k === 1 ? "sample" : `${k} samples`} of it (the curve averages over all choices of ${k}).`;
  restart();
  field("explorer").scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
}

for (const point of document.querySelectorAll(".point.live")) {
  point.addEventListener("click", () => choose(point));
  point.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    choose(point);
  });
}
for (const id of ["split", "which", "order"]) field(id).addEventListener("change", restart);
let typing;
field("search").addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(restart, 200); });
field("previous").addEventListener("click", () => { state.page -= 1; draw(); });
field("next").addEventListener("click", () => { state.page += 1; draw(); });
field("reset").addEventListener("click", () => {
  state.metric = null;
  for (const other of document.querySelectorAll(".point.chosen")) other.classList.remove("chosen");
  field("chosen").textContent = "All problems, with their share of right samples.";
  field("search").value = "";
  field("which").value = "";
  field("order").value = "file";
  restart();
});
draw();
