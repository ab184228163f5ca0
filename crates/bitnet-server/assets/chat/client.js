// The server's routes.

import { settings } from "./store.js";

function headers() {
  const all = { "content-type": "application/json" };
  if (settings.key) all.authorization = `Bearer ${settings.key}`;
  return all;
}

async function refused(response) {
  let message;
  try {
    message = (await response.json()).error.message;
  } catch {
    message = response.statusText;
  }
  if (response.status === 401) message += ". It belongs into the settings.";
  return new Error(message || `status ${response.status}`);
}

export async function models() {
  const response = await fetch("/v1/models", { headers: headers() });
  if (!response.ok) throw await refused(response);
  return (await response.json()).data.map((model) => model.id);
}

function number(text) {
  const value = Number.parseFloat(text);
  return Number.isFinite(value) ? value : undefined;
}

// The deltas of an answer: {content?, reason?, timings?}.
export async function* answer(messages, signal) {
  const system = settings.system.trim();
  const body = {
    messages: system ? [{ role: "system", content: system }, ...messages] : messages,
    model: settings.model || undefined,
    temperature: number(settings.temperature),
    top_p: number(settings.top_p),
    max_tokens: number(settings.max_tokens),
    stream: true,
  };
  const init = { method: "POST", headers: headers(), body: JSON.stringify(body), signal };
  const response = await fetch("/v1/chat/completions", init);
  if (!response.ok) throw await refused(response);
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Error(chunk.error.message);
    const choice = chunk.choices[0];
    if (choice) yield { content: choice.delta.content, reason: choice.finish_reason, timings: chunk.timings };
  }
  throw new Error("the connection was lost before the answer ended");
}

// The data of server-sent events.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) yield part.slice(6);
  }
}
