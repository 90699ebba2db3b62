// The page's side of the conversation with the launcher (embed.js) that shows it in a frame on another site.
// The server decides which sites may; whoever frames us and speaks first is the one we answer, and nobody else.

export class Launcher {
  #origin = null;
  #visible = true;
  #unread = 0;
  #onShown;

  constructor(onShown) {
    this.#onShown = onShown;
    addEventListener("message", (event) => {
      if (event.source === window.parent && event.data?.type === "chat-bridge:shown") this.#hear(event);
    });
  }

  arrived() {
    if (this.#visible) return;
    this.#unread += 1;
    this.#tell("chat-bridge:unread", { count: this.#unread });
  }

  close() {
    this.#tell("chat-bridge:close");
  }

  #hear(event) {
    this.#origin = event.origin;
    this.#visible = event.data.shown === true;
    this.#tell("chat-bridge:ready");
    if (!this.#visible) return;
    this.#unread = 0;
    this.#onShown();
  }

  #tell(type, more) {
    if (this.#origin) window.parent.postMessage({ type, ...more }, this.#origin);
  }
}
