// The page of `ondine serve` in Chromium: page.mjs URL DIRECTORY. The directory has playwright-core and takes the screenshots.
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { join, resolve } from "node:path";

const [url, directory] = process.argv.slice(2);
const { chromium } = createRequire(resolve(directory, "package.json"))("playwright-core");
const executablePath = ["/usr/bin/chromium", "/usr/bin/chromium-browser"].find(existsSync);
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
const context = await browser.newContext({ viewport: { width: 900, height: 760 }, colorScheme: "light" });
const page = await context.newPage();
const complaints = [];
page.on("console", (message) => message.type() === "error" && complaints.push(message.text()));
page.on("pageerror", (error) => complaints.push(error.message));
const requests = [];
page.on("request", (request) => requests.push(request));
const picture = (name) => page.screenshot({ path: join(directory, `${name}.png`) });
const answered = (count) => page.waitForFunction((n) => document.querySelectorAll(".receipt").length === n, count, { timeout: 120000 });

await page.goto(url);
await page.waitForFunction(() => document.querySelectorAll("#model option").length === 2);

// Everything can be named, and reached with the keyboard.
for (const role of [["textbox", "Your message"], ["combobox", "Model"], ["button", "Send"], ["checkbox", "Replace personal data before sending"], ["log", "Conversation"]]) {
  assert.equal(await page.getByRole(role[0], { name: role[1] }).count(), 1, role.join(" "));
}
await page.keyboard.press("Tab");
assert.equal(await page.evaluate(() => document.activeElement.className), "skip");

// An answer comes piece by piece, with where and why.
await page.fill("#question", "Write a short list of three fruits, and one line of Python code.");
await page.keyboard.press("Enter");
await page.waitForSelector("article.assistant > div > *", { timeout: 120000 });
await answered(1);
const receipt = await page.textContent(".receipt");
assert.match(receipt, /On this device \(cpu, \w+, \d+ threads\): .+ tokens\/s · first token after \d+ ms/);
await picture("answer-light");

// Personal data is shown before it is sent, and is not sent.
await page.fill("#question", "My address is bob@example.org, say hello to me.");
await page.waitForSelector("#private:not([hidden])");
assert.match(await page.textContent("#found"), /bob@example\.org → <EMAIL_ADDRESS_1>/);
assert.match(await page.textContent("#preview"), /<EMAIL_ADDRESS_1>/);
await picture("personal-data");
await page.click("#send");
await answered(2);
const sent = requests.filter((request) => request.url().endsWith("/v1/chat/completions")).map((request) => request.postData());
assert.ok(sent[1].includes("<EMAIL_ADDRESS_1>") && !sent[1].includes("bob@example.org"), sent[1]);

// Dark, the other model, a new conversation, and stopping.
await page.click("#theme");
await page.click("#theme");
assert.equal(await page.evaluate(() => document.documentElement.dataset.theme), "dark");
await picture("answer-dark");
await page.click("#clear");
assert.equal(await page.locator("article").count(), 0);
const asked = () => JSON.parse(requests.filter((request) => request.url().endsWith("/v1/chat/completions")).at(-1).postData());
await page.fill("#question", "Tell me a very long story about the sea, with many chapters.");
await page.click("#send");
await page.waitForSelector("article.assistant > div > *", { timeout: 120000 });
await page.click("#stop");
await page.waitForSelector("#stop[hidden]", { state: "attached" });
assert.equal(await page.textContent("#status"), "Stopped.");
await page.selectOption("#model", { index: 1 });
await page.fill("#question", "hello");
await page.click("#send");
await answered(1);
assert.equal(asked().model, "llama");
assert.equal(asked().messages.length, 3);

// What a model writes is text, whatever it looks like.
const nodes = await page.evaluate(() => {
  const box = document.createElement("div");
  box.append(...markdown("# Title\n\nA **bold** `code` [link](https://example.org) [bad](javascript:alert(1)) <img src=x onerror=alert(1)>\n\n1. one\n2. two\n\n```js\nlet a = 1;\n```\n> quoted"));
  return { html: box.innerHTML, images: box.querySelectorAll("img").length, links: [...box.querySelectorAll("a")].map((a) => a.href) };
});
assert.equal(nodes.images, 0);
assert.deepEqual(nodes.links, ["https://example.org/"]);
for (const part of ["<h4>Title</h4>", "<strong>bold</strong>", "<code>code</code>", "<ol start=\"1\"><li>one</li><li>two</li></ol>", "let a = 1;", "<blockquote><p>quoted</p></blockquote>"]) {
  assert.ok(nodes.html.includes(part), `${part} is not in ${nodes.html}`);
}

// A narrow window scrolls nowhere sideways.
await page.setViewportSize({ width: 360, height: 640 });
assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= 360));
await picture("narrow");

// Enough contrast in both colours (WCAG 2.2 AA: 4.5).
for (const theme of ["light", "dark"]) {
  const ratios = await page.evaluate((name) => {
    document.documentElement.dataset.theme = name;
    const style = getComputedStyle(document.documentElement);
    const light = (variable) => {
      const hex = style.getPropertyValue(variable).trim().slice(1);
      const [r, g, b] = [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16) / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
    const pairs = [["--text", "--ground"], ["--text", "--card"], ["--text", "--code"], ["--quiet", "--card"], ["--quiet", "--ground"], ["--on-accent", "--accent"], ["--accent", "--card"], ["--warn", "--ground"], ["--error", "--ground"]];
    return pairs.map(([a, b]) => [a, b, ratio(a, b)]);
  }, theme);
  for (const [a, b, ratio] of ratios) assert.ok(ratio >= 4.5, `${theme}: ${a} on ${b} is ${ratio}`);
}

const origin = new URL(url).origin;
assert.ok(requests.every((request) => request.url().startsWith(origin)), "something came from elsewhere");
assert.deepEqual(complaints, []);
await browser.close();
console.log("the page works");
