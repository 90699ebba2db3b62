// Server-sent events over fetch, which can send the visitor's token as a header; EventSource can't.

import { waitBeforeRetry } from "./backoff.js";

const SILENCE = 40_000; // the server sends at least a comment every 15 s, so a connection this quiet is dead
const STEADY = 5_000; // one that ended sooner counts as a failure, so that a server in trouble is left in peace

export class EventStream {
  #connect;
  #lastEventId;
  #onEvent;
  #onState;
  #stopped = new AbortController();
  #connection = null;
  #heardAt = 0;

  // `connect(lastEventId, signal)` gives the response; `onState` hears "open" and "lost".
  constructor({ connect, lastEventId, onEvent, onState }) {
    this.#connect = connect;
    this.#lastEventId = lastEventId;
    this.#onEvent = onEvent;
    this.#onState = onState;
    const { signal } = this.#stopped;
    // After a change of network or a sleep the old connection may be dead without a sign of it.
    for (const change of ["online", "offline"]) addEventListener(change, () => this.#connection?.abort(), { signal });
    document.addEventListener("visibilitychange", () => this.#abandonIfSilent(SILENCE / 2), { signal });
    this.#run();
  }

  stop() {
    this.#stopped.abort();
    this.#connection?.abort();
  }

  async #run() {
    let failures = 0;
    while (!this.#stopped.signal.aborted) {
      const began = Date.now();
      let retryAfter = 0;
      try {
        await this.#follow();
      } catch (error) {
        retryAfter = error.retryAfter;
      }
      if (this.#stopped.signal.aborted) return;
      this.#onState("lost");
      failures = Date.now() - began > STEADY ? 0 : failures + 1;
      await waitBeforeRetry(failures, retryAfter);
    }
  }

  async #follow() {
    this.#connection = new AbortController();
    this.#heardAt = Date.now();
    const watch = setInterval(() => this.#abandonIfSilent(SILENCE), 1000);
    try {
      const response = await this.#connect(this.#lastEventId, this.#connection.signal);
      this.#onState("open");
      await this.#read(response.body.getReader());
    } finally {
      clearInterval(watch);
      this.#connection.abort();
      this.#connection = null;
    }
  }

  async #read(reader) {
    const decoder = new TextDecoder();
    const parser = new EventParser();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      this.#heardAt = Date.now();
      for (const event of parser.push(decoder.decode(part.value, { stream: true }))) {
        if (this.#stopped.signal.aborted) return;
        this.#lastEventId = event.id ?? this.#lastEventId;
        this.#onEvent(event.type, JSON.parse(event.data));
      }
    }
  }

  #abandonIfSilent(allowed) {
    if (Date.now() - this.#heardAt > allowed) this.#connection?.abort();
  }
}

export class EventParser {
  #rest = "";
  #id = null;
  #type = "message";
  #data = [];

  // The events that this piece of text completes.
  push(text) {
    const lines = (this.#rest + text).split(/\r\n|\n|\r(?!$)/); // a last \r may be the first half of \r\n
    this.#rest = lines.pop();
    return lines.map((line) => this.#take(line)).filter(Boolean);
  }

  #take(line) {
    if (line === "") return this.#complete();
    const [, field, value = ""] = /^([^:]*)(?:: ?(.*))?$/s.exec(line); // a comment has an empty field name
    if (field === "id") this.#id = value;
    else if (field === "event") this.#type = value;
    else if (field === "data") this.#data.push(value);
    return null;
  }

  #complete() {
    const event = this.#data.length > 0 ? { id: this.#id, type: this.#type, data: this.#data.join("\n") } : null;
    this.#id = null;
    this.#type = "message";
    this.#data = [];
    return event;
  }
}
