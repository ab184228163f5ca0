// The page: what is shown, and what keys and buttons do.

import { answer, models } from "./client.js";
import { element, markdown } from "./markdown.js";
import { chats, remove, removeAll, save, saveSettings, settings } from "./store.js";

const at = (id) => document.getElementById(id);
const [body, input, scroll, list, shown, dialog] = [document.body, ...["input", "scroll", "list", "messages", "settings"].map(at)];

let chat = fresh();
// What stops the answer in the making.
let making = null;

function fresh() {
  return { id: crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`, title: "", messages: [] };
}

function icon(path) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
  line.setAttribute("d", path);
  svg.append(line);
  return svg;
}

const ICONS = {
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  again: "M20 11a8 8 0 1 0-2.3 6.3M20 4.5v6.5h-6.5",
  edit: "M4 20h4L19 9l-4-4L4 16zM13 7l4 4",
  drop: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
};

function button(path, title, does, className = "icon") {
  const node = element("button", className, icon(path));
  node.type = "button";
  node.title = title;
  node.setAttribute("aria-label", title);
  node.addEventListener("click", does);
  return node;
}

async function copy(text, node) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Pages that came without TLS from elsewhere may use only the older way.
    const area = element("textarea", "hidden");
    area.value = text;
    body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  const title = node.title;
  node.title = "Copied";
  node.classList.add("done");
  setTimeout(() => {
    node.title = title;
    node.classList.remove("done");
  }, 1500);
}

// ---- Messages

function rate(timings) {
  if (!timings?.predicted_n) return "";
  const speed = timings.predicted_per_second;
  return `${timings.predicted_n} tokens${speed ? ` · ${speed.toFixed(speed < 10 ? 1 : 0)} tokens/s` : ""}`;
}

function view(index) {
  const message = chat.messages[index];
  const node = element("article", message.role);
  const text = element("div", "text");
  const tools = element("div", "tools");
  node.append(text, tools);
  if (message.role === "user") {
    text.textContent = message.content;
    tools.append(button(ICONS.edit, "Change and send again", () => edit(node, index)));
  } else {
    if (message.content) text.replaceChildren(markdown(message.content));
    if (message.error) node.insertBefore(element("div", "error", message.error), tools);
    tools.append(button(ICONS.again, "Answer again", () => regenerate(index)));
  }
  const copies = button(ICONS.copy, "Copy", () => copy(message.content, copies));
  tools.prepend(copies);
  if (message.stats) tools.append(element("span", "stats", message.stats));
  return node;
}

function render() {
  body.classList.toggle("fresh", chat.messages.length === 0);
  shown.replaceChildren(...chat.messages.map((_, index) => view(index)));
  shown.lastElementChild?.classList.add("last");
  document.title = chat.title ? `${chat.title} – bitnet` : "bitnet";
  renderList();
}

function edit(node, index) {
  if (making) return;
  const area = element("textarea");
  area.value = chat.messages[index].content;
  area.rows = Math.min(12, area.value.split("\n").length + 1);
  const done = element("button", "primary", "Send");
  const leave = element("button", "", "Cancel");
  const again = () => {
    if (!area.value.trim()) return;
    chat.messages.length = index;
    say(area.value.trim());
  };
  done.addEventListener("click", again);
  leave.addEventListener("click", render);
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      event.stopPropagation();
      render();
    }
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      again();
    }
  });
  node.replaceChildren(area, element("div", "edit", leave, done));
  area.focus();
}

function isAtEnd() {
  return scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 60;
}

function toEnd() {
  scroll.scrollTop = scroll.scrollHeight;
}

function mark() {
  body.classList.toggle("away", !isAtEnd() && chat.messages.length > 0);
}

function say(text) {
  if (!chat.title) chat.title = text.replace(/\s+/g, " ").slice(0, 60);
  chat.messages.push({ role: "user", content: text });
  reply();
}

function regenerate(index) {
  if (making) return;
  chat.messages.length = index;
  reply();
}

async function reply() {
  const mine = chat;
  const asked = mine.messages.map(({ role, content }) => ({ role, content }));
  const message = { role: "assistant", content: "" };
  mine.messages.push(message);
  save(mine);
  render();
  toEnd();
  const stop = new AbortController();
  making = stop;
  busy();
  const node = shown.lastElementChild;
  node.classList.add("making");
  const text = node.querySelector(".text");
  text.replaceChildren(element("span", "waiting", element("i"), element("i"), element("i")));
  // One drawing a frame, however fast tokens come.
  let frame = 0;
  const draw = () => {
    frame = 0;
    const follows = isAtEnd();
    if (message.content) text.replaceChildren(markdown(message.content));
    if (follows) toEnd();
    mark();
  };
  try {
    for await (const { content, reason, timings } of answer(asked, stop.signal)) {
      message.content += content ?? "";
      if (timings) message.stats = rate(timings);
      if (reason === "length") message.stats += " · cut off at the limit";
      frame ||= requestAnimationFrame(draw);
    }
  } catch (error) {
    if (error.name === "AbortError") message.stats = "stopped";
    else message.error = error.message;
  }
  cancelAnimationFrame(frame);
  if (making === stop) making = null;
  busy();
  // A conversation that was deleted meanwhile stays so.
  if (chats.includes(mine)) save(mine);
  if (chat === mine) {
    const follows = isAtEnd();
    render();
    if (follows) toEnd();
  } else {
    renderList();
  }
}

function stop() {
  making?.abort();
}

// ---- The list of conversations

const DAY = 86_400_000;

function age(changed) {
  const today = new Date().setHours(0, 0, 0, 0);
  if (changed >= today) return "Today";
  if (changed >= today - DAY) return "Yesterday";
  return changed >= today - 7 * DAY ? "Last week" : "Earlier";
}

function renderList() {
  const nodes = [];
  let last;
  for (const one of chats) {
    if (age(one.changed) !== last) nodes.push(element("h2", "", (last = age(one.changed))));
    const title = element("button", "title", one.title || "Untitled");
    title.type = "button";
    title.title = one.title;
    title.addEventListener("click", () => open(one));
    const drop = button(ICONS.drop, `Delete “${one.title}”`, () => {
      if (one === chat) open(fresh());
      remove(one.id);
      renderList();
    });
    const row = element("div", one === chat ? "current" : "", title, drop);
    if (one === chat) title.setAttribute("aria-current", "true");
    nodes.push(row);
  }
  list.replaceChildren(...nodes);
}

function open(other) {
  if (other !== chat) stop();
  chat = other;
  body.classList.remove("list");
  render();
  toEnd();
  mark();
  if (matchMedia("(hover: hover)").matches) input.focus();
}

// ---- Writing

function grow() {
  input.style.height = "auto";
  input.style.height = `${input.scrollHeight}px`;
  busy();
}

function busy() {
  body.classList.toggle("busy", making !== null);
  const send = at("send");
  send.disabled = making === null && !input.value.trim();
  send.title = making ? "Stop (Esc)" : "Send (Enter)";
  send.setAttribute("aria-label", making ? "Stop" : "Send");
}

function submit() {
  if (making) return stop();
  const text = input.value.trim();
  if (!text) return;
  input.value = "";
  grow();
  say(text);
}

at("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
input.addEventListener("input", grow);
input.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    if (!making) submit();
  }
});
document.addEventListener("keydown", (event) => {
  const command = event.ctrlKey || event.metaKey;
  if (event.key === "Escape" && !dialog.open) {
    if (making) stop();
    else body.classList.remove("list");
  } else if (command && event.shiftKey && event.key.toLowerCase() === "o") {
    event.preventDefault();
    open(fresh());
  } else if (command && event.key === ",") {
    event.preventDefault();
    if (!dialog.open) configure();
  } else if (event.key === "/" && !dialog.open && !/^(TEXTAREA|INPUT|SELECT)$/.test(document.activeElement?.tagName)) {
    event.preventDefault();
    input.focus();
  }
});
shown.addEventListener("click", (event) => {
  const node = event.target.closest("button.copy");
  if (node) {
    copy(node.closest("figure").querySelector("code").textContent, node);
    node.textContent = "Copied";
    setTimeout(() => (node.textContent = "Copy"), 1500);
  }
});
scroll.addEventListener("scroll", mark);
at("down").addEventListener("click", toEnd);

// ---- Around it

for (const id of ["new", "new-small"]) at(id).addEventListener("click", () => open(fresh()));
at("hide").addEventListener("click", () => {
  body.classList.remove("list");
  body.classList.add("wide");
});
at("show").addEventListener("click", () => {
  body.classList.add("list");
  body.classList.remove("wide");
});
at("shade").addEventListener("click", () => body.classList.remove("list"));

function paint() {
  if (settings.theme) document.documentElement.dataset.theme = settings.theme;
  else delete document.documentElement.dataset.theme;
}
at("theme").addEventListener("click", () => {
  const dark = getComputedStyle(document.documentElement).colorScheme;
  const now = dark === "dark" || (dark !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
  settings.theme = now ? "light" : "dark";
  saveSettings();
  paint();
});

const FIELDS = ["system", "temperature", "top_p", "max_tokens", "key"];
const form = dialog.querySelector("form");

function configure() {
  for (const name of FIELDS) form.elements[name].value = settings[name];
  body.classList.remove("list");
  dialog.showModal();
}
at("settings-open").addEventListener("click", configure);
dialog.addEventListener("click", (event) => {
  // What lies outside the form is the backdrop.
  if (event.target === dialog && !form.contains(document.elementFromPoint(event.clientX, event.clientY))) dialog.close();
});
dialog.addEventListener("close", () => {
  const key = settings.key;
  for (const name of FIELDS) settings[name] = form.elements[name].value;
  saveSettings();
  if (key !== settings.key) offer();
});
at("forget").addEventListener("click", () => {
  if (!confirm("Delete all chats of this browser?")) return;
  removeAll();
  open(fresh());
});

const chosen = at("model");

async function offer() {
  let names;
  try {
    names = await models();
  } catch (error) {
    chosen.replaceChildren(element("option", "", error.message));
    chosen.disabled = true;
    // A server that is still loading will be asked again.
    if (/loading/.test(error.message)) setTimeout(offer, 2000);
    return;
  }
  chosen.replaceChildren(...names.map((name) => element("option", "", name)));
  if (!names.includes(settings.model)) settings.model = "";
  chosen.value = settings.model || names[0];
  chosen.disabled = names.length < 2;
}
chosen.addEventListener("change", () => {
  settings.model = chosen.value;
  saveSettings();
});

paint();
render();
grow();
offer();
input.focus();
