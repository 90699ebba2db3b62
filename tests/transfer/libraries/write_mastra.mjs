// Writes a Mastra memory: node --input-type=module - FILE < write_mastra.mjs, where there is a node_modules folder

import { LibSQLStore } from "@mastra/libsql";
import { Memory } from "@mastra/memory";

const storage = new LibSQLStore({ id: "storage", url: `file:${process.argv[2]}` });
const memory = new Memory({ storage });
const resourceId = "telegram:main:42";
const first = await memory.createThread({ resourceId, threadId: "0199aaaa-bbbb-7ccc-8ddd-eeeeeeee0001", title: "Rain" });
const second = await memory.createThread({ resourceId: "ada", threadId: "thread-2", title: "Sun", metadata: { a: 1 } });

const text = (text) => ({ type: "text", text });
const said = (id, thread, role, second, parts) => ({
  id, role, threadId: thread.id, resourceId: thread.resourceId, createdAt: new Date(Date.UTC(2026, 0, 2, 3, 4, second, 678)),
  content: { format: 2, parts },
});
await memory.saveMessages({
  messages: [
    said("m1", first, "user", 1, [text("Will it rain?")]),
    said("m2", first, "assistant", 2, [
      { type: "step-start" },
      {
        type: "tool-invocation",
        toolInvocation: { state: "result", toolCallId: "c", toolName: "weather", args: {}, result: "rain" },
      },
      text("Yes."),
      text("Take an umbrella ☂️."),
    ]),
    said("m3", first, "user", 3, [
      { type: "file", mimeType: "image/png", data: "https://example.invalid/a.png" },
      { type: "file", mimeType: "image/png", data: "iVBORw0KGgo=" },
    ]),
    said("n1", second, "user", 4, [text("hello")]),
    said("n2", second, "assistant", 5, [text("hi")]),
  ],
});
process.exit(0);
