// Conversations and settings, kept in this browser.

const CHATS = "bitnet.chats";
const SETTINGS = "bitnet.settings";

function read(key, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(key)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

function write(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
  } catch {
    // A store that is full or forbidden keeps nothing; the page goes on without it.
  }
}

// Newest first: {id, title, changed, messages: [{role, content, stats?, error?}]}.
export const chats = read(CHATS, []).filter((chat) => Array.isArray(chat?.messages));
export const settings = { system: "", temperature: "", top_p: "", max_tokens: "", key: "", theme: "", model: "", ...read(SETTINGS, {}) };

export function save(chat) {
  const at = chats.findIndex((c) => c.id === chat.id);
  if (at >= 0) chats.splice(at, 1);
  chat.changed = Date.now();
  chats.unshift(chat);
  write(CHATS, chats);
}

export function remove(id) {
  const at = chats.findIndex((c) => c.id === id);
  if (at >= 0) chats.splice(at, 1);
  write(CHATS, chats);
}

export function removeAll() {
  chats.length = 0;
  write(CHATS, chats);
}

export function saveSettings() {
  write(SETTINGS, settings);
}
