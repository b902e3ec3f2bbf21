// The page of `trimtab serve`: one guided search and the base alone, side by side, and the search's
// tree as it grows. It asks what any client can ask: /v1/completions with stream and search.trace.
"use strict";

const $ = (id) => document.getElementById(id);
let running = null;

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  start();
});
$("stop").addEventListener("click", () => running?.abort());
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
});

function settings() {
  const number = (id) => Number($(id).value);
  const seed = $("seed").value === "" ? Math.floor(Math.random() * 2 ** 32) : number("seed");
  return {
    prompt: $("prompt").value,
    max_tokens: number("max_tokens"),
    temperature: number("temperature"),
    seed,
    stream: true,
    shape: {
      beam_width: number("beam_width"),
      successors: number("successors"),
      chunk_len: number("chunk_len"),
    },
  };
}

async function start() {
  running?.abort();
  const abort = (running = new AbortController());
  const { shape, ...request } = settings();
  const tree = new Tree($("tree"));
  const guided = new Answer("guided", request.prompt);
  const alone = new Answer("alone", request.prompt);
  say("Searching…");
  busy(true);
  const search = ask({ ...request, search: { method: "cbs", ...shape, trace: true } }, abort, (choice) => {
    for (const chunk of choice.trimtab?.chunks ?? []) {
      tree.grow(chunk.candidates);
      guided.show(tree.best());
    }
    guided.commit(choice.text);
    if (choice.finish_reason) {
      tree.finish();
      guided.end(choice);
    }
  });
  const base = ask({ ...request, search: { method: "sample" } }, abort, (choice) => {
    alone.commit(choice.text);
    if (choice.finish_reason) alone.end(choice);
  });
  try {
    await Promise.all([search, base]);
    say(`Done in ${tree.rounds} rounds. Seed ${request.seed}.`);
  } catch (error) {
    if (running === abort) abort.signal.aborted ? say("Stopped.") : say(error.message, true);
    abort.abort();
  } finally {
    if (running === abort) busy(false);
  }
}

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", wrong);
}

function busy(is) {
  $("stop").disabled = !is;
  document.body.dataset.state = is ? "busy" : "idle";
}

// Sends a request and hands each choice of its events to `take`.
async function ask(body, abort, take) {
  const headers = { "Content-Type": "application/json" };
  if ($("key").value) headers.Authorization = `Bearer ${$("key").value}`;
  const response = await fetch("/v1/completions", {
    method: "POST", headers, body: JSON.stringify(body), signal: abort.signal,
  });
  if (!response.ok) {
    if (response.status === 401) {
      $("key_field").hidden = false;
      $("key").focus();
    }
    throw new Error((await response.json()).error.message);
  }
  let text = "";
  let drawn = performance.now();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Error("The server broke off.");
    text += value;
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) {
      if (!event.startsWith("data: ")) continue;
      const data = event.slice(6);
      if (data === "[DONE]") return;
      const { error, choices } = JSON.parse(data);
      if (error) throw new Error(error.message);
      choices.forEach(take);
      // Events may come faster than they can be drawn: let the page breathe.
      if (performance.now() - drawn > 30) {
        await new Promise((go) => setTimeout(go));
        drawn = performance.now();
      }
    }
  }
}

// One of the two answers: what was asked, what is certain, and how the best beam goes on.
class Answer {
  constructor(id, prompt) {
    this.element = $(id);
    this.figures = $(`${id}_figures`);
    this.committed = "";
    for (const span of this.element.children) span.textContent = "";
    this.figures.textContent = "";
    this.part("asked").textContent = prompt;
  }

  part(name) {
    return this.element.querySelector(`.${name}`);
  }

  commit(text) {
    this.committed += text;
    this.part("committed").textContent = this.committed;
    this.show(this.best ?? "");
  }

  show(best) {
    this.best = best;
    const rest = this.part("rest");
    if (rest) rest.textContent = best.startsWith(this.committed) ? best.slice(this.committed.length) : "";
  }

  end({ trimtab, finish_reason }) {
    this.show("");
    const bold = (text, name = "") => {
      const element = document.createElement("b");
      element.textContent = text;
      element.className = name;
      return element;
    };
    const parts = [];
    if (trimtab.gain !== null) {
      parts.push("gain ", bold(signed(trimtab.gain), trimtab.gain < 0 ? "minus" : "plus"), " · ");
    }
    parts.push(bold(trimtab.tokens), ` tokens · ended by ${finish_reason === "stop" ? "itself" : "the limit"}`);
    this.figures.replaceChildren(...parts);
  }
}

function signed(gain) {
  return (gain < 0 ? "−" : "+") + Math.abs(gain).toFixed(2);
}

// The candidates of every round under the beam that they were forked from.
class Tree {
  constructor(element) {
    this.element = element;
    this.rounds = 0;
    // The kept ones of the last round, by rank: what the next round's parents refer to.
    this.beams = [];
    element.replaceChildren();
    this.root = null;
  }

  grow(candidates) {
    this.rounds += 1;
    this.root ??= this.element.appendChild(group());
    const beams = [];
    const nodes = candidates.map((candidate) => {
      const parent = candidate.parent === null ? null : this.beams[candidate.parent];
      if (candidate.carried) {
        // It had ended before and is only compared again.
        if (candidate.rank !== null) beams[candidate.rank] = parent;
        else parent.setKind("pruned");
        return null;
      }
      if (candidate.duplicate_of !== null) return null;
      const node = new Candidate(candidate, parent, this.rounds);
      (parent ? parent.children() : this.root).append(node.item);
      if (candidate.rank !== null) beams[candidate.rank] = node;
      return node;
    });
    for (const candidate of candidates) {
      if (candidate.duplicate_of !== null) nodes[candidate.duplicate_of]?.again();
    }
    this.beams = beams;
    const first = this.element.querySelector("li");
    if (first && !this.element.querySelector('li[tabindex="0"]')) first.tabIndex = 0;
  }

  // The text of the best beam so far.
  best() {
    return this.beams[0]?.text() ?? "";
  }

  finish() {
    for (let node = this.beams[0]; node; node = node.parent) node.setKind("winner");
  }
}

function group() {
  const list = document.createElement("ul");
  list.setAttribute("role", "group");
  return list;
}

class Candidate {
  constructor({ text, gain, rank, finish_reason, lost }, parent, round) {
    this.parent = parent;
    this.own = text;
    this.count = 1;
    // A lost candidate is one that the guide could not score.
    this.gain = gain === null ? "lost" : signed(gain);
    this.said = gain === null ? `lost (${lost})` : `gain ${this.gain}`;
    this.round = round;
    this.item = document.createElement("li");
    this.item.setAttribute("role", "treeitem");
    this.item.tabIndex = -1;
    this.row = document.createElement("div");
    this.row.title = lost ?? "";
    const part = (tag, name, content = "") => {
      const element = document.createElement(tag);
      element.className = name;
      element.textContent = content;
      return element;
    };
    this.mark = part("i", "mark");
    this.times = part("span", "times");
    this.row.append(this.mark, part("span", "gain", this.gain), part("span", "text", text || "(end)"), this.times);
    this.item.append(this.row);
    this.setKind(rank === null ? "pruned" : finish_reason ? "ended" : "kept");
  }

  setKind(kind) {
    this.row.className = `row ${kind}`;
    this.mark.className = `mark ${kind}`;
    this.item.dataset.kind = kind;
    this.item.setAttribute("aria-label", `round ${this.round}, ${this.said}, ${kind}: ${this.own || "end"}`);
  }

  again() {
    this.count += 1;
    this.times.textContent = `×${this.count}`;
  }

  children() {
    this.list ??= this.item.appendChild(group());
    return this.list;
  }

  text() {
    return (this.parent?.text() ?? "") + this.own;
  }
}

// Walking through the tree by keys, as the pattern for trees has it: one item can be tabbed to.
$("tree").addEventListener("keydown", (event) => {
  const items = [...$("tree").querySelectorAll("li")];
  if (items.length === 0) return;
  const here = items.indexOf(document.activeElement);
  const item = items[here];
  const to = {
    ArrowDown: () => items[here + 1],
    ArrowUp: () => items[Math.max(here - 1, 0)],
    ArrowRight: () => item?.querySelector("li"),
    ArrowLeft: () => item?.parentElement.closest("li"),
    Home: () => items[0],
    End: () => items.at(-1),
  }[event.key];
  if (!to) return;
  event.preventDefault();
  const target = to();
  if (!target) return;
  for (const other of items) other.tabIndex = other === target ? 0 : -1;
  target.focus();
});
