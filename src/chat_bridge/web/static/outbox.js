// Messages on their way to the server: one at a time, in order, tried until there is an answer, and kept over a reload.
// Sending the same one twice is harmless, since the server knows it by its `client_msg_id`.

import { waitBeforeRetry } from "./backoff.js";

export class Outbox {
  #store;
  #send;
  #on;
  #messages;
  #running = false;

  // `on.waiting(message)`, `on.sent(message, receipt)` and `on.refused(message)` hear what becomes of each.
  constructor(store, send, on) {
    this.#store = store;
    this.#send = send;
    this.#on = on;
    this.#messages = store.read().unsent ?? [];
  }

  resume() {
    for (const message of this.#messages) this.#tell(message);
    this.#run();
  }

  // `attachments` are what the server said of uploads.
  add(text, attachments = []) {
    this.#enqueue({ client_msg_id: newId(), text, attachments });
  }

  retry({ client_msg_id, text, attachments }) {
    this.settle(client_msg_id);
    this.#enqueue({ client_msg_id, text, attachments });
  }

  // The server has it, or the visitor gave it up.
  settle(id) {
    if (!this.#messages.some((message) => message.client_msg_id === id)) return;
    this.#messages = this.#messages.filter((message) => message.client_msg_id !== id);
    this.#store.change({ unsent: this.#stored().filter((message) => message.client_msg_id !== id) });
  }

  #enqueue(message) {
    this.#messages.push(message);
    this.#store.change({ unsent: [...this.#stored(), message] });
    this.#tell(message);
    this.#run();
  }

  async #run() {
    if (this.#running) return;
    this.#running = true;
    for (let message = this.#next(); message; message = this.#next()) await this.#deliver(message);
    this.#running = false;
  }

  #next() {
    return this.#messages.find((message) => message.reason === undefined);
  }

  async #deliver(message) {
    for (let failures = 0; this.#messages.includes(message); failures += 1) {
      try {
        const { client_msg_id, text, attachments = [] } = message;
        const uploads = attachments.map(({ id }) => ({ upload_id: id }));
        const receipt = await this.#send({ client_msg_id, text, attachments: uploads });
        this.settle(client_msg_id);
        return this.#on.sent(message, receipt);
      } catch (error) {
        if (error.passing === false) return this.#refuse(message, error);
        await waitBeforeRetry(failures, error.retryAfter);
      }
    }
  }

  // Uploads that have ended, or are of another message, are not there the next time either.
  #refuse(message, { message: reason, status }) {
    message.reason = reason;
    message.final = Boolean(message.attachments?.length) && (status === 404 || status === 409);
    const others = this.#stored().filter((other) => other.client_msg_id !== message.client_msg_id);
    this.#store.change({ unsent: [...others, message] });
    this.#tell(message);
  }

  #tell(message) {
    if (message.reason === undefined) this.#on.waiting(message);
    else this.#on.refused(message);
  }

  #stored() {
    return this.#store.read().unsent ?? [];
  }
}

// crypto.randomUUID exists on secure origins only, and a bridge on a local network may have no TLS.
function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/(.{8})(.{4})(.{4})(.{4})(.{12})/, "$1-$2-$3-$4-$5");
}
