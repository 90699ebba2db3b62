// The visitor's conversation: who we are to the server, kept over reloads, and every call of its API.

const API = "/api/v1/chat";
const KEY = "chat-bridge";
const PATIENCE = 30_000;

// One record per origin. Where the browser forbids storage it lives as long as the page.
export class Store {
  #memory = {};

  read() {
    try {
      return JSON.parse(localStorage.getItem(KEY)) ?? {};
    } catch {
      return this.#memory;
    }
  }

  // Reads again before it writes, since another tab may have written meanwhile.
  change(changes) {
    this.#memory = { ...this.read(), ...changes };
    try {
      localStorage.setItem(KEY, JSON.stringify(this.#memory));
    } catch {
      // Blocked or full: memory has it.
    }
  }
}

// An answer that is not the expected one. A passing one may be tried again as it is.
export class Problem extends Error {
  constructor(status, reason, retryAfter) {
    super(reason);
    this.status = status;
    this.passing = status === 401 || status === 408 || status === 429 || status >= 500;
    this.retryAfter = retryAfter;
  }
}

export class Conversation {
  #store;
  #id;
  #token;
  #beginning = null;
  #onBegun;
  #onExpired;

  constructor(store, { onBegun, onExpired }) {
    this.#store = store;
    this.#onBegun = onBegun;
    this.#onExpired = onExpired;
    this.#adoptStored();
  }

  get begun() {
    return this.#token !== undefined;
  }

  async begin() {
    this.#beginning ??= this.#create().finally(() => (this.#beginning = null));
    await this.#beginning;
  }

  async send(message) {
    if (!this.begun) await this.begin();
    return this.#json(`/${this.#id}/messages`, post(message));
  }

  history(query) {
    return this.#json(`/${this.#id}/messages?${new URLSearchParams(query)}`);
  }

  // A file for the next message. `onProgress` hears the share that is sent; fetch can't tell it.
  async upload(file, onProgress, signal) {
    if (!this.begun) await this.begin();
    signal.throwIfAborted();
    const token = this.#token;
    const request = new XMLHttpRequest();
    request.open("POST", `${API}/${this.#id}/uploads?${new URLSearchParams({ name: file.name })}`);
    request.setRequestHeader("Authorization", `Bearer ${token}`);
    request.setRequestHeader("Content-Type", file.type || "application/octet-stream");
    request.upload.addEventListener("progress", ({ loaded, total }) => onProgress(total ? loaded / total : 1));
    signal.addEventListener("abort", () => request.abort());
    await new Promise((resolve) => {
      request.addEventListener("loadend", resolve);
      request.send(file);
    });
    if (request.status === 201) return JSON.parse(request.responseText);
    if (request.status === 0) throw new Error(""); // no answer
    if (request.status === 401) this.#expire(token);
    const response = new Response(request.responseText, { status: request.status });
    throw await problemOf(response, request.getResponseHeader("Retry-After"));
  }

  // No message will have it. Where that fails, it expires.
  async forget(upload) {
    await this.#fetch(`/${this.#id}/uploads/${upload}`, { method: "DELETE" }).catch(() => {});
  }

  events(lastEventId, signal) {
    const headers = { Accept: "text/event-stream", "Last-Event-ID": lastEventId };
    return this.#fetch(`/${this.#id}/events`, { headers, signal, cache: "no-store" });
  }

  async #create() {
    const { conversation, token } = await this.#json("/conversations", post({}));
    this.#store.change({ conversation, token });
    this.#id = conversation;
    this.#token = token;
    this.#onBegun();
  }

  #adoptStored() {
    const { conversation, token } = this.#store.read();
    this.#id = conversation;
    this.#token = token;
  }

  async #json(path, options) {
    const response = await this.#fetch(path, { signal: AbortSignal.timeout(PATIENCE), ...options });
    return response.json();
  }

  async #fetch(path, { headers, ...options } = {}) {
    const token = this.#token;
    const authorization = token ? { Authorization: `Bearer ${token}` } : {};
    const response = await fetch(API + path, { ...options, headers: { ...headers, ...authorization } });
    if (response.ok) return response;
    if (response.status === 401 && token !== undefined) this.#expire(token);
    throw await problemOf(response);
  }

  // Several calls may hear of the same end; and another tab may have begun anew already.
  #expire(token) {
    if (token !== this.#token) return;
    if (this.#store.read().token === token) this.#store.change({ conversation: undefined, token: undefined });
    this.#adoptStored();
    this.#onExpired();
    if (this.begun) this.#onBegun();
  }
}

function post(body) {
  return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
}

async function problemOf(response, retryAfter = response.headers.get("Retry-After")) {
  const problem = await response.json().catch(() => ({})); // a proxy in between may answer in HTML
  const reason = problem.detail ?? problem.title ?? `HTTP ${response.status}`;
  return new Problem(response.status, reason, Number(retryAfter) || 0);
}
