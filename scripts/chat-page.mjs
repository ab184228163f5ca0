// Drives the chat page in a real browser: node scripts/chat-page.mjs URL FOLDER. Screenshots go to FOLDER.

import assert from "node:assert/strict";
import { chromium } from "playwright-core";

const [url, folder] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});

const MARKDOWN = `Here is a **short** answer with \`code\`, *stress* and [a page](https://example.org/a_(b)).

## Steps

1. First, build it:
   \`\`\`sh
   cargo build --release
   \`\`\`
2. Then run it
   - with a model
   - and a prompt

| Type | Bits | Speed |
|:-----|:----:|------:|
| I2_S | 2.00 | 61.3 |
| TQ1_0 | 1.69 | 48.9 |

> One number: the same bits everywhere.

\`\`\`rust
fn main() {
    println!("hello, {}", "world"); // <b>not bold</b>
}
\`\`\`
`;

const HOSTILE = `<img src=x onerror="window.hurt=1"><script>window.hurt=1</script>
[a](javascript:window.hurt=1) [b](data:text/html,x) ![c](https://example.org/pixel.png) <b>bold</b>
\`\`\`"><img src=x onerror=window.hurt=1>
<script>window.hurt=1</script>
\`\`\`
**<i>x</i>** \`<u>y</u>\` [<i>z</i>](https://example.org)`;

// Whatever the page asks of anybody but the server, or the browser complains about, is a failure.
const faults = [];
async function open(options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 820 }, permissions: ["clipboard-read", "clipboard-write"], ...options });
  const page = await context.newPage();
  page.on("request", (request) => request.url().startsWith(url) || faults.push(`asks ${request.url()}`));
  page.on("pageerror", (error) => faults.push(String(error)));
  page.on("console", (message) => message.type() === "error" && faults.push(message.text()));
  await page.goto(url);
  await page.waitForFunction(() => document.querySelector("#model option"));
  return page;
}

const done = (what) => console.log(`ok: ${what}`);
const answers = (page) => page.locator("article.assistant");
const idle = (page) => page.waitForFunction(() => !document.body.classList.contains("busy"));

async function settle(page, fields) {
  await page.keyboard.press("Control+,");
  for (const [name, value] of Object.entries(fields)) await page.fill(`dialog [name=${name}]`, value);
  await page.click("#settings-done");
}

async function say(page, text) {
  await page.fill("#input", text);
  await page.keyboard.press("Enter");
}

// What a model would say, whatever this one does.
async function scripted(page, text) {
  await page.route("**/v1/chat/completions", (route) => {
    const chunk = (delta, reason = null, timings = undefined) =>
      `data: ${JSON.stringify({ choices: [{ index: 0, delta, finish_reason: reason }], timings })}\n\n`;
    const parts = [chunk({ role: "assistant", content: "" }), ...text.match(/[\s\S]{1,7}/g).map((content) => chunk({ content }))];
    const end = chunk({}, "stop", { predicted_n: 171, predicted_per_second: 38.2 });
    route.fulfill({ contentType: "text/event-stream", body: [...parts, end, "data: [DONE]\n\n"].join("") });
  });
}

// ---- The real model
let page = await open();
await page.screenshot({ path: `${folder}/empty-light.png` });
await settle(page, { max_tokens: "12", temperature: "0", system: "be brief" });
await say(page, "hello");
await idle(page);
const first = await answers(page).innerText();
assert.equal(await page.locator("article").count(), 2);
assert.match(first, /tokens/);
await page.click("article.assistant button[title='Answer again']");
await idle(page);
assert.equal(await answers(page).count(), 1);
done("an answer is streamed, and made again");

await settle(page, { max_tokens: "100000" });
await page.fill("#input", "on and on");
await page.keyboard.press("Shift+Enter");
await page.keyboard.type("second line");
assert.match(await page.inputValue("#input"), /\n/);
await page.keyboard.press("Enter");
await page.waitForFunction(() => document.body.classList.contains("busy"));
await page.keyboard.press("Escape");
await idle(page);
done("Enter sends, Shift+Enter begins a line, Esc stops");

await page.reload();
await page.waitForSelector("nav .title");
assert.equal(await page.locator("nav .title").count(), 1);
await page.click("nav .title");
assert.equal(await page.locator("article.user").count(), 2);
await page.keyboard.press("Control+Shift+O");
assert.equal(await page.locator("article").count(), 0);
await settle(page, { max_tokens: "12" });
await say(page, "another chat");
await idle(page);
assert.equal(await page.locator("nav .title").count(), 2);
await page.hover("nav div >> nth=0");
await page.click("nav div >> nth=0 >> button.icon");
assert.equal(await page.locator("nav .title").count(), 1);
done("conversations are kept, opened and deleted");

await page.evaluate(() => {
  const settings = JSON.parse(localStorage.getItem("bitnet.settings"));
  localStorage.setItem("bitnet.settings", JSON.stringify({ ...settings, top_p: "7" }));
});
await page.reload();
await say(page, "this cannot be");
await idle(page);
assert.match(await page.locator("article.assistant .error").innerText(), /top/);
faults.splice(0, faults.length, ...faults.filter((fault) => !/422/.test(fault)));
done("an error of the server is shown");
await page.context().close();

// ---- What it makes of markdown
page = await open();
await scripted(page, MARKDOWN);
await say(page, "Show me everything that markdown can do, and be quick about it.");
await idle(page);
for (const selector of ["h2", "ol > li", "ol ul > li", "table th", "blockquote", "figure pre code", "strong", "em", "p code", "a[rel~=noopener]"]) {
  assert.ok((await page.locator(`article.assistant .text ${selector}`).count()) > 0, selector);
}
assert.equal(await page.locator("article.assistant a").getAttribute("href"), "https://example.org/a_(b)");
assert.equal(await page.locator("figure >> nth=0 >> pre").innerText(), "cargo build --release");
await page.click("figure >> nth=1 >> button");
assert.match(await page.evaluate(() => navigator.clipboard.readText()), /^fn main\(\)/);
await page.evaluate(() => document.activeElement.blur());
await page.screenshot({ path: `${folder}/chat-light.png` });
await page.click("#theme");
await page.screenshot({ path: `${folder}/chat-dark.png` });
await page.keyboard.press("Control+,");
await page.screenshot({ path: `${folder}/settings-dark.png` });
await page.keyboard.press("Escape");
await page.reload();
assert.equal(await page.evaluate(() => document.documentElement.dataset.theme), "dark");
done("markdown, copying, and a theme that stays");
await page.context().close();

// ---- Changing a message
page = await open();
await scripted(page, "A second answer.");
await say(page, "first words");
await idle(page);
await page.hover("article.user");
await page.click("article.user button[title='Change and send again']");
await page.fill("article.user textarea", "other words");
await page.keyboard.press("Enter");
await idle(page);
assert.equal(await page.locator("article.user .text").innerText(), "other words");
assert.equal(await page.locator("article").count(), 2);
done("a message is changed and sent again");
await page.context().close();

// ---- What it does not run
page = await open();
await scripted(page, HOSTILE);
await say(page, HOSTILE);
await idle(page);
await page.waitForTimeout(200);
assert.equal(await page.evaluate(() => window.hurt), undefined);
assert.equal(await page.locator("article script, article img, article b, article i, article u").count(), 0);
assert.deepEqual(
  [...new Set(await page.locator("article a").evaluateAll((all) => all.map((a) => new URL(a.href).protocol)))],
  ["https:"],
);
const inline = await page.evaluate(() => {
  const script = document.createElement("script");
  script.textContent = "window.inline = 1";
  document.body.append(script);
  return window.inline;
});
assert.equal(inline, undefined, "the policy forbids code in the page");
faults.splice(0, faults.length, ...faults.filter((fault) => !/Content Security Policy/.test(fault)));
done("nothing that a model writes is run or fetched");
await page.context().close();

// ---- On a phone, dark as the phone is
page = await open({ viewport: { width: 390, height: 844 }, deviceScaleFactor: 2, isMobile: true, hasTouch: true, colorScheme: "dark" });
await page.screenshot({ path: `${folder}/phone-empty.png` });
await scripted(page, MARKDOWN);
await say(page, "Show me everything that markdown can do.");
await idle(page);
await page.screenshot({ path: `${folder}/phone-dark.png` });
const wide = await page.evaluate(() => document.documentElement.scrollWidth > innerWidth);
assert.ok(!wide, "nothing is wider than the phone");
await page.tap("#show");
await page.waitForTimeout(400);
await page.screenshot({ path: `${folder}/phone-list.png` });
await page.tap("nav .title");
await page.waitForTimeout(300);
assert.ok(!(await page.evaluate(() => document.body.classList.contains("list"))));
done("a phone");
await page.context().close();

assert.deepEqual(faults, []);
await browser.close();
