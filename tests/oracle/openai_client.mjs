// OpenAI's own client for JavaScript, unmodified, against a running server.
//
//     node openai_client.mjs FOLDER http://127.0.0.1:8080 KEY KEY_OF_ANOTHER_SCOPE
//
// FOLDER has the client in its `node_modules`. The first key may ask the policy, the second one may not. Ends with 0
// and one line where everything is as the client's types and the protocol have it, else with a trace.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const [folder, url, key, other] = process.argv.slice(2);
const require = createRequire(join(folder, "x.js"));
const OpenAI = require("openai");
// The package exports no path to its own version.
const { version } = JSON.parse(readFileSync(join(folder, "node_modules/openai/package.json"), "utf8"));

const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0, timeout: 60_000 });
const messages = [{ role: "user", content: "numbers 3 5 7, target 15" }];

async function refused(kind, code, call) {
  await assert.rejects(call, (error) => error instanceof kind && error.code === code);
}

async function checkModels() {
  const models = (await client.models.list()).data;
  assert.equal(models.length, 1);
  assert.deepEqual(await client.models.retrieve(models[0].id), models[0]);
  return models[0].id;
}

async function checkChat(model) {
  const options = { model, messages, max_completion_tokens: 24, seed: 7 };
  const whole = await client.chat.completions.create(options);
  assert.equal(whole.choices[0].message.role, "assistant");
  const stream = await client.chat.completions.create({
    ...options, stream: true, stream_options: { include_usage: true },
  });
  let [text, usage] = ["", null];
  for await (const chunk of stream) {
    usage = chunk.usage ?? usage;
    text += chunk.choices[0]?.delta.content ?? "";
  }
  assert.equal(text, whole.choices[0].message.content);
  assert.deepEqual(usage, whole.usage);
  const left = await client.chat.completions.create({ ...options, stream: true });
  for await (const _ of left) break; // Leaves in the middle.
}

async function checkCompletions(model) {
  const whole = await client.completions.create({ model, prompt: ["numbers 3 5 7", "numbers 2 4"], seed: 7 });
  assert.equal(whole.choices.length, 2);
  assert.equal(whole.choices[0].finish_reason === "stop" || whole.usage.completion_tokens > 0, true);
}

async function checkResponses(model) {
  const options = { model, input: messages, max_output_tokens: 24, store: false, temperature: 0 };
  const whole = await client.responses.create(options);
  assert.ok(["completed", "incomplete"].includes(whole.status));
  let [text, last] = ["", null];
  for await (const event of await client.responses.create({ ...options, stream: true })) {
    if (event.type === "response.output_text.delta") text += event.delta;
    last = event;
  }
  assert.equal(text, whole.output_text);
  assert.equal(last.response.usage.total_tokens, whole.usage.total_tokens);
  await refused(OpenAI.BadRequestError, "unsupported_value",
    () => client.responses.create({ ...options, previous_response_id: "resp_1" }));
}

async function checkRefusals(model) {
  const chat = (more) => client.chat.completions.create({ model, messages, max_tokens: 1, ...more });
  await refused(OpenAI.BadRequestError, "invalid_value", () => chat({ temperature: 3 }));
  await refused(OpenAI.BadRequestError, "unknown_field", () => chat({ temprature: 1 }));
  const tools = [{ type: "function", function: { name: "f", parameters: {} } }];
  await refused(OpenAI.BadRequestError, "unsupported_value", () => chat({ tools }));
  await refused(OpenAI.AuthenticationError, "invalid_key",
    () => client.withOptions({ apiKey: "fsq_0" }).models.list());
  await refused(OpenAI.PermissionDeniedError, "missing_scope",
    () => client.withOptions({ apiKey: other }).models.list());
}

const model = await checkModels();
await checkChat(model);
await checkCompletions(model);
await checkResponses(model);
await checkRefusals(model);
console.log(`openai ${version}: all as expected`);
