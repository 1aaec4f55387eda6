"use strict";
// The page of `ondine serve`. It talks to this server alone, and writes what a model says as text nodes, never as markup.

const element = (id) => document.getElementById(id);
const [log, question, statusLine] = ["log", "question", "status"].map(element);
let conversation = [];
let running = null;
let scan = { text: "", spans: [], sent: "", placeholders: {} };

// Talking to the server

async function call(path, body, signal) {
  const headers = { "content-type": "application/json" };
  const token = sessionStorage.getItem("token");
  if (token) headers.authorization = `Bearer ${token}`;
  const options = body ? { method: "POST", body: JSON.stringify(body), headers, signal } : { headers, signal };
  const response = await fetch(path, options);
  if (response.ok) return response;
  element("access").hidden = response.status !== 401;
  const error = await response.json().catch(() => null);
  throw new Error(error?.error?.message ?? `the server answered ${response.status}`);
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const parts = held.split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      if (!part.startsWith("data: ") || part === "data: [DONE]") continue;
      yield JSON.parse(part.slice(6));
    }
  }
}

async function listModels() {
  const list = await (await call("/v1/models")).json();
  element("model").replaceChildren(...list.data.map((model) => new Option(model.id, model.id)));
  say("");
}

// Personal data, before anything is sent

async function findPrivate() {
  const text = question.value;
  if (text === scan.text) return;
  const found = text.trim() ? await (await call("/v1/redact", { text })).json() : { text, spans: [], placeholders: {} };
  // An answer that comes late must not replace a newer one.
  if (text === question.value) scan = { text, spans: found.spans, sent: found.text, placeholders: found.placeholders };
  showPrivate();
}

function showPrivate() {
  const names = Object.keys(scan.placeholders);
  element("private").hidden = names.length === 0;
  const item = (name) => make("li", { textContent: `${scan.placeholders[name]} → ${name}` });
  element("found").replaceChildren(...names.map(item));
  element("preview").textContent = outgoing();
}

const outgoing = () => (element("replace").checked ? scan.sent : scan.text);

function restored(text, placeholders) {
  return Object.entries(placeholders).reduce((all, [name, original]) => all.replaceAll(name, original), text);
}

// A conversation

async function ask() {
  if (running || !question.value.trim()) return;
  await findPrivate();
  const sent = outgoing();
  const placeholders = element("replace").checked ? scan.placeholders : {};
  // Another conversation may be begun meanwhile.
  const turns = conversation;
  turns.push({ role: "user", content: sent });
  show("user", "You sent").body.append(make("div", { className: "plain", textContent: sent }));
  question.value = "";
  scan = { text: "", spans: [], sent: "", placeholders: {} };
  showPrivate();

  const answer = show("assistant", element("model").value);
  running = new AbortController();
  setBusy(true);
  const began = performance.now();
  let first = 0;
  let text = "";
  let drawn = false;
  const draw = () => {
    drawn = false;
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
    answer.body.replaceChildren(...markdown(restored(text, placeholders)));
    if (atEnd) log.scrollTop = log.scrollHeight;
  };
  try {
    const body = { model: element("model").value, messages: turns, stream: true };
    const response = await call("/v1/chat/completions", body, running.signal);
    let receipt = null;
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      const piece = event.choices?.[0]?.delta?.content;
      if (piece) {
        first ||= performance.now() - began;
        text += piece;
        if (!drawn) {
          drawn = true;
          requestAnimationFrame(draw);
        }
      }
      receipt = event.ondine ?? receipt;
    }
    if (receipt) answer.article.append(make("p", { className: "receipt", textContent: told(receipt, first) }));
    say("The answer is complete.");
  } catch (error) {
    if (error.name === "AbortError") say("Stopped.");
    else say(error.message, true);
  }
  draw();
  if (text) turns.push({ role: "assistant", content: text });
  else turns.pop();
  running = null;
  setBusy(false);
  question.focus();
}

function told(receipt, first) {
  const where = receipt.place === "device" ? "On this device" : `At ${receipt.place}`;
  const times = receipt.timings;
  const parts = [`${where} (${receipt.backend}, ${receipt.device}, ${receipt.threads} threads): ${receipt.reason}`];
  if (times) {
    parts.push(`${times.tokens_per_second.toFixed(1)} tokens/s`);
    parts.push(`first token after ${Math.round(times.time_to_first_token_ms)} ms (here after ${Math.round(first)} ms)`);
    parts.push(`${times.generated_tokens} tokens, ${times.reused_tokens} of ${times.prompt_tokens} prompt tokens reused`);
    if (times.stopped_by === "deadline" || times.stopped_by === "length") parts.push(`cut by ${times.stopped_by}`);
  }
  return parts.join(" · ");
}

function show(role, title) {
  const article = make("article", { className: role });
  const body = make("div", {});
  article.append(make("h3", { textContent: title }), body);
  log.append(article);
  log.scrollTop = log.scrollHeight;
  return { article, body };
}

function setBusy(busy) {
  element("send").disabled = busy;
  element("stop").hidden = !busy;
  log.setAttribute("aria-busy", String(busy));
  if (busy) say("Answering…");
}

function say(text, isError = false) {
  statusLine.textContent = text;
  statusLine.className = isError ? "error" : "";
}

// Markdown as far as answers use it, into nodes

function make(tag, properties, children = []) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

function markdown(text) {
  const nodes = [];
  const lines = text.split("\n");
  for (let at = 0; at < lines.length; ) {
    const line = lines[at];
    const fence = line.match(/^\s*(```+|~~~+)/);
    const heading = line.match(/^(#{1,6})\s+(.*)/);
    const listItem = /^\s*(?:[-*+]|(\d+)[.)])\s+(.*)/;
    if (fence) {
      let end = at + 1;
      while (end < lines.length && !lines[end].trim().startsWith(fence[1])) end += 1;
      const code = make("code", { textContent: lines.slice(at + 1, end).join("\n") });
      nodes.push(make("pre", { tabIndex: 0 }, [code]));
      at = end + 1;
    } else if (heading) {
      // Answers are headed by an h3.
      nodes.push(make(`h${Math.min(6, heading[1].length + 3)}`, {}, inline(heading[2])));
      at += 1;
    } else if (listItem.test(line)) {
      const start = line.match(listItem)[1];
      const list = make(start ? "ol" : "ul", start ? { start: Number(start) } : {});
      for (let item; at < lines.length && (item = lines[at].match(listItem)); at += 1) {
        list.append(make("li", {}, inline(item[2])));
      }
      nodes.push(list);
    } else if (line.startsWith(">")) {
      const quoted = [];
      for (; at < lines.length && lines[at].startsWith(">"); at += 1) quoted.push(lines[at].replace(/^>\s?/, ""));
      nodes.push(make("blockquote", {}, markdown(quoted.join("\n"))));
    } else if (!line.trim()) {
      at += 1;
    } else {
      const paragraph = [];
      const begins = (next) => !next.trim() || /^\s*(```|~~~)|^#{1,6}\s|^>/.test(next) || listItem.test(next);
      do paragraph.push(lines[at++]);
      while (at < lines.length && !begins(lines[at]));
      nodes.push(make("p", {}, inline(paragraph.join("\n"))));
    }
  }
  return nodes;
}

function inline(text) {
  const pattern = /`([^`]+)`|\*\*([^*]+)\*\*|\*([^*\s][^*]*)\*|\[([^\]]+)\]\((https?:\/\/[^\s)]+)\)/;
  const nodes = [];
  for (let match; (match = text.match(pattern)); text = text.slice(match.index + match[0].length)) {
    nodes.push(text.slice(0, match.index));
    const [, code, strong, emphasis, label, link] = match;
    if (code) nodes.push(make("code", { textContent: code }));
    else if (strong) nodes.push(make("strong", {}, inline(strong)));
    else if (emphasis) nodes.push(make("em", {}, inline(emphasis)));
    else nodes.push(make("a", { href: link, rel: "noopener noreferrer", target: "_blank", textContent: label }));
  }
  nodes.push(text);
  return nodes;
}

// Colours

const dark = matchMedia("(prefers-color-scheme: dark)");
const themes = ["system", "light", "dark"];
let theme = themes.includes(localStorage.getItem("theme")) ? localStorage.getItem("theme") : "system";

function paint() {
  const shown = theme === "system" ? (dark.matches ? "dark" : "light") : theme;
  document.documentElement.dataset.theme = shown;
  element("theme").textContent = `◐ ${theme}`;
  element("theme").setAttribute("aria-label", `Colours: ${theme === "system" ? "as the system" : theme}`);
}

// Begin

let pause = 0;
question.addEventListener("input", () => {
  clearTimeout(pause);
  pause = setTimeout(() => findPrivate().catch((error) => say(error.message, true)), 150);
});
question.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    element("ask").requestSubmit();
  }
});
element("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask().catch((error) => say(error.message, true));
});
element("replace").addEventListener("change", showPrivate);
element("stop").addEventListener("click", () => running?.abort());
element("clear").addEventListener("click", () => {
  running?.abort();
  conversation = [];
  log.replaceChildren();
  say("A new conversation.");
});
element("theme").addEventListener("click", () => {
  theme = themes[(themes.indexOf(theme) + 1) % themes.length];
  localStorage.setItem("theme", theme);
  paint();
});
element("access").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", element("token").value);
  listModels().catch((error) => say(error.message, true));
  element("access").hidden = true;
});
dark.addEventListener("change", paint);
paint();
listModels().catch((error) => say(error.message, true));
