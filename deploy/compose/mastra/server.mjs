// A Mastra server with one agent, `demo`, which needs no key: its model is written by hand. Put yours in its place.
//
// Environment: DATA_FILE (the memory, an SQLite file), PORT.

import { serve } from "@hono/node-server";
import { Agent } from "@mastra/core/agent";
import { Mastra } from "@mastra/core/mastra";
import { MastraServer } from "@mastra/hono";
import { LibSQLStore } from "@mastra/libsql";
import { Memory } from "@mastra/memory";
import { Hono } from "hono";

const textOf = (message) =>
  message.content
    .filter((part) => part.type === "text")
    .map((part) => part.text)
    .join("\n");

// What the model streams: the parts that the AI SDK defines.
async function* answer(prompt) {
  const written = prompt.filter((message) => message.role === "user").map(textOf);
  const words = `I am the demo agent. You have written ${written.length} of the messages I remember; the last one is: ${written.at(-1)}`;
  yield { type: "stream-start", warnings: [] };
  yield { type: "text-start", id: "1" };
  for (const delta of words.split(/(?<= )/)) yield { type: "text-delta", id: "1", delta };
  yield { type: "text-end", id: "1" };
  yield { type: "finish", finishReason: "stop", usage: { inputTokens: 0, outputTokens: 0, totalTokens: 0 } };
}

const model = {
  specificationVersion: "v2",
  provider: "demo",
  modelId: "demo",
  supportedUrls: {},
  doStream: async ({ prompt }) => ({ stream: ReadableStream.from(answer(prompt)) }),
};

const storage = new LibSQLStore({ id: "storage", url: `file:${process.env.DATA_FILE}` });
const demo = new Agent({
  id: "demo",
  name: "demo",
  instructions: "Say how many messages there are, and repeat the last one.",
  model,
  memory: new Memory({ storage, options: { lastMessages: 20 } }),
});

const app = new Hono();
app.get("/health", (request) => request.json({ success: true }));
await new MastraServer({ app, mastra: new Mastra({ agents: { demo }, storage, logger: false }) }).init();
const server = serve({ fetch: app.fetch, port: Number(process.env.PORT) }, ({ port }) =>
  console.log(`the demo agent listens on port ${port}`),
);
process.on("SIGTERM", () => {
  server.close(() => process.exit());
  server.closeIdleConnections();
});
