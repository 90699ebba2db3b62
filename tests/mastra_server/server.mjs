// A real Mastra server with hand-written models: what they say depends on nothing but the messages they get.
//
// Environment: DATA_FILE (the memory, an SQLite file), PORT (0: any free one), TOKEN (when set, the key to ask for).
// Each line on stdout is one JSON object: `listening` with port and pid, `call` when a model is called, `abort` when the
// caller of a model went away.

import { setTimeout as pause } from "node:timers/promises";
import { serve } from "@hono/node-server";
import { Agent } from "@mastra/core/agent";
import { Mastra } from "@mastra/core/mastra";
import { SimpleAuth } from "@mastra/core/server";
import { createTool } from "@mastra/core/tools";
import { MastraServer } from "@mastra/hono";
import { LibSQLStore } from "@mastra/libsql";
import { Memory } from "@mastra/memory";
import { Hono } from "hono";
import { z } from "zod";

const tell = (event, facts) => console.log(JSON.stringify({ event, ...facts }));

// What a model says: parts of the AI SDK's stream.
const text = (...deltas) => {
  const id = crypto.randomUUID();
  return [
    { type: "text-start", id },
    ...deltas.map((delta) => ({ type: "text-delta", id, delta })),
    { type: "text-end", id },
  ];
};
const toolCall = (toolName, input) => ({
  type: "tool-call",
  toolCallId: crypto.randomUUID(),
  toolName,
  input: JSON.stringify(input),
});
const finish = (finishReason = "stop") => ({
  type: "finish",
  finishReason,
  usage: { inputTokens: 3, outputTokens: 5, totalTokens: 8 },
});

function providerError(statusCode, isRetryable) {
  return Object.assign(new Error("the key sk-provider-secret was refused at https://provider.invalid/v1"), {
    name: "AI_APICallError",
    url: "https://provider.invalid/v1",
    statusCode,
    isRetryable,
    responseHeaders: { "retry-after": "0" },
  });
}

const textOf = (message) =>
  message.content
    .filter((part) => part.type === "text")
    .map((part) => part.text)
    .join("\n");

// A language model from `say`, an async generator of stream parts. It gets the texts of the user's messages (`last` is
// the last one's), the prompt, whether a tool has just answered, and a signal.
function model(agent, say) {
  return ({ requestContext }) => ({
    specificationVersion: "v2",
    provider: "test",
    modelId: agent,
    supportedUrls: {},
    async doStream({ prompt, abortSignal }) {
      const users = prompt.filter((message) => message.role === "user").map(textOf);
      const last = users.at(-1) ?? "";
      tell("call", { agent, users, context: Object.fromEntries(requestContext.entries()) });
      abortSignal?.addEventListener("abort", () => tell("abort", { agent, last }));
      const toolAnswered = prompt.at(-1).role === "tool";
      const parts = say({ users, last, prompt, toolAnswered, signal: abortSignal });
      const first = await parts.next(); // so that a model may fail before its stream begins, as providers do
      return {
        stream: ReadableStream.from(
          (async function* () {
            yield { type: "stream-start", warnings: [] };
            if (!first.done) yield first.value;
            yield* parts;
          })(),
        ),
      };
    },
  });
}

async function* echo({ users, last }) {
  yield* text(`I remember ${users.length} of your messages.`, " ", "The last one: ", last);
  yield finish();
}

async function* failing() {
  throw providerError(401, false);
}

const failed = new Set();
async function* flaky(call) {
  if (!failed.has(call.last)) {
    failed.add(call.last);
    throw providerError(503, true);
  }
  yield* echo(call);
}

// "prepare 5000" begins its response after 5 s, "wait 5000" its text; "200 words, 20 apart" says a word every 20 ms.
async function* slow({ last, signal }) {
  const [, wait = 0] = last.match(/wait (\d+)/) ?? [];
  const [, words = 1, apart = 0] = last.match(/(\d+) words, (\d+) apart/) ?? [];
  yield { type: "text-start", id: "1" };
  await pause(Number(wait), undefined, { signal });
  for (let word = 1; word <= Number(words); word++) {
    yield { type: "text-delta", id: "1", delta: `${word} ` };
    await pause(Number(apart), undefined, { signal });
  }
  yield { type: "text-end", id: "1" };
  yield finish();
}

async function* tool({ toolAnswered }) {
  if (toolAnswered) {
    yield* text("It is sunny.");
    yield finish();
  } else {
    yield* text("Let me look.");
    yield toolCall("weather", { city: "Hanoi" });
    yield finish("tool-calls");
  }
}

async function* approval(call) {
  if (call.toolAnswered) {
    const { deleted } = call.prompt.at(-1).content.at(-1).output.value ?? {};
    yield* text(deleted ? "All of it is deleted." : "Nothing was deleted.");
    yield finish();
  } else if (/^(\w+: )?delete/.test(call.last)) {
    yield toolCall("delete", { what: call.last });
    yield finish("tool-calls");
  } else {
    yield* echo(call);
  }
}

async function* length() {
  yield* text("Once upon a");
  yield finish("length");
}

async function* empty() {
  yield finish();
}

async function* big({ toolAnswered }) {
  if (toolAnswered) {
    yield* text("That was a lot.");
    yield finish();
  } else {
    yield toolCall("book", {});
    yield finish("tool-calls");
  }
}

async function* image({ prompt }) {
  const files = prompt.at(-1).content.filter((part) => part.type === "file");
  yield* text(files.map((file) => file.mediaType).join(", "));
  yield finish();
}

// Tells what it was given: the last text, type and size of the files with it, and how many files it remembers in all.
const filesOf = (message) =>
  typeof message.content === "string" ? [] : message.content.filter((part) => part.type === "file");
const bytesOf = ({ data }) =>
  typeof data === "string" ? Buffer.from(data.replace(/^data:[^,]*,/, ""), "base64").length : data.length;
async function* files({ prompt, last }) {
  const given = prompt.filter((message) => message.role === "user");
  const told = filesOf(given.at(-1)).map((file) => `${file.mediaType} ${bytesOf(file)} ${file.filename ?? "-"}`);
  yield* text([last || "no text", ...told, `${given.flatMap(filesOf).length} in all`].join(" | "));
  yield finish();
}

// Makes files in all forms in which models give them: "base64 text/plain aGk=", "bytes image/png 0,1,255", "url image/png
// https://...". The last form breaks the stream after it.
async function* making({ last }) {
  for (const line of last.split("\n")) {
    const [form, mediaType, data] = line.split(" ");
    if (form === "say") yield* text(line.slice(4));
    else if (form === "fail") throw providerError(503, true);
    else yield { type: "file", mediaType, data: form === "bytes" ? Uint8Array.from(data.split(","), Number) : data };
  }
  yield finish();
}

// As providers do whose model takes no files.
async function* blind(call) {
  if (call.prompt.some((message) => filesOf(message).length)) throw providerError(400, false);
  yield* echo(call);
}

// The first call fails when it has the message already.
async function* flakyFiles(call) {
  if (!failed.has(call.last)) {
    failed.add(call.last);
    throw providerError(503, true);
  }
  yield* files(call);
}

const tools = {
  tool: {
    weather: createTool({
      id: "weather",
      description: "The weather of a city",
      inputSchema: z.object({ city: z.string() }),
      execute: async () => ({ weather: "sunny" }),
    }),
  },
  approval: {
    delete: createTool({
      id: "delete",
      description: "Deletes something",
      inputSchema: z.object({ what: z.string() }),
      requireApproval: true,
      execute: async () => ({ deleted: true }),
    }),
  },
  big: {
    book: createTool({
      id: "book",
      description: "A book of 1.5 MB, which the last line of the stream repeats six times",
      inputSchema: z.object({}),
      execute: async () => ({ book: "a long book ".repeat(125_000) }),
    }),
  },
};

const textIn = (message) => message.content.parts.map((part) => part.text ?? "").join("");
const guards = {
  blocked: [{ id: "guard", processInput: ({ abort }) => abort("not allowed here") }],
  slow: [
    {
      id: "preparation",
      async processInput({ messages }) {
        const [, milliseconds = 0] = textIn(messages.at(-1)).match(/prepare (\d+)/) ?? [];
        await pause(Number(milliseconds));
        return messages;
      },
    },
  ],
};

const storage = new LibSQLStore({ id: "storage", url: `file:${process.env.DATA_FILE}` });

const says = {
  ...{ echo, failing, flaky, slow, tool, approval, length, empty, big, image, blocked: echo },
  ...{ files, making, blind, "flaky-files": flakyFiles, knowing: echo, forgetful: echo },
};
// What `knowing` knows of a person goes with no thread; `forgetful` has no memory at all.
const memories = {
  knowing: new Memory({ storage, options: { lastMessages: 20, workingMemory: { enabled: true, scope: "resource" } } }),
  forgetful: undefined,
};
const agents = Object.entries(says).map(([id, say]) => [
  `${id}Agent`, // the name in the code, which is not the id
  new Agent({
    id,
    name: id,
    instructions: "None.",
    model: model(id, say),
    maxRetries: 0,
    memory: id in memories ? memories[id] : new Memory({ storage, options: { lastMessages: 20 } }),
    tools: tools[id] ?? {},
    inputProcessors: guards[id] ?? [],
  }),
]);

const mastra = new Mastra({
  agents: Object.fromEntries(agents),
  storage,
  logger: false,
  server: process.env.TOKEN ? { auth: new SimpleAuth({ tokens: { [process.env.TOKEN]: { id: "bridge" } } }) } : {},
});

const app = new Hono();
await new MastraServer({ app, mastra }).init();
serve({ fetch: app.fetch, hostname: "127.0.0.1", port: Number(process.env.PORT ?? 0) }, ({ port }) =>
  tell("listening", { port, pid: process.pid }),
);
