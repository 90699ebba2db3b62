// The messages on the page, strictly in the order of `seq` and each of them once; below them what is not sent yet.

import { renderMarkdown } from "./markdown.js";

const COMMAND = /^\/\w+$/;

export class Timeline {
  #log;
  #texts;
  #language;
  #onRetry;
  #onDiscard;
  #shown = []; // { seq, element }, ascending
  #unsent = new Map(); // client_msg_id -> element

  constructor(log, texts, { onRetry, onDiscard }) {
    this.#log = log;
    this.#texts = texts;
    this.#language = document.documentElement.lang;
    this.#onRetry = onRetry;
    this.#onDiscard = onDiscard;
    log.parentElement.addEventListener("click", ({ target }) => {
      const button = target.closest("button.copy");
      if (button) this.#copy(button);
    });
  }

  get empty() {
    return this.#log.childElementCount === 0;
  }

  get firstSeq() {
    return this.#shown[0]?.seq;
  }

  // Many at once, which are not read out.
  showHistory(messages) {
    this.#log.ariaLive = "off";
    for (const message of messages) this.show(message);
    setTimeout(() => (this.#log.ariaLive = "polite"), 500);
  }

  // False when it was here before; then only its status may have changed.
  show(message) {
    let after = this.#shown.length;
    while (after > 0 && this.#shown[after - 1].seq > message.seq) after -= 1;
    const same = this.#shown[after - 1];
    if (same?.seq === message.seq) {
      this.#foot(same.element, message);
      return false;
    }
    const element = this.#unsent.get(message.client_msg_id) ?? this.#build(message);
    this.#unsent.delete(message.client_msg_id);
    element.classList.remove("waiting", "refused");
    element.dataset.seq = message.seq;
    this.#foot(element, message);
    this.#place(element, this.#shown[after]?.element);
    this.#shown.splice(after, 0, { seq: message.seq, element });
    return true;
  }

  showWaiting(message) {
    const element = this.#unsentElement(message);
    element.classList.add("waiting");
    element.classList.remove("refused");
    this.#footOf(element, "off").replaceChildren(create("span", "state", this.#texts.sending));
    this.#log.append(element);
  }

  showRefused(message) {
    const element = this.#unsentElement(message);
    element.classList.add("refused");
    element.classList.remove("waiting");
    this.#footOf(element, "polite").replaceChildren(
      create("span", "state", this.#texts.refused.replace("{reason}", message.reason)),
      this.#choice(this.#texts.retry, () => this.#onRetry(message)),
      this.#choice(this.#texts.discard, () => this.#discard(message)),
    );
    this.#log.append(element);
  }

  // Says something below all messages, and begins to count anew: what comes next is another conversation.
  beginAnew(text) {
    this.#shown = [];
    this.#place(create("p", "notice", text));
  }

  #discard(message) {
    this.#unsent.get(message.client_msg_id).remove();
    this.#unsent.delete(message.client_msg_id);
    this.#onDiscard(message);
  }

  #place(element, before = this.#unsent.values().next().value ?? null) {
    // Moving an element that is in its place already would have it read out again.
    if (element.parentElement !== this.#log || element.nextElementSibling !== before) this.#log.insertBefore(element, before);
  }

  #unsentElement(message) {
    const known = this.#unsent.get(message.client_msg_id);
    if (known) return known;
    const element = this.#build({ ...message, direction: "inbound" });
    this.#unsent.set(message.client_msg_id, element);
    return element;
  }

  #build({ direction, text, notice, sender }) {
    const own = direction === "inbound";
    const element = create("article", own ? "message own" : "message agent");
    const author = own ? this.#texts.you : (sender?.name ?? this.#texts.assistant);
    const body = create("div", own ? "body" : "body markdown");
    if (own) {
      body.textContent = text;
      body.dir = "auto";
      element.classList.toggle("command", COMMAND.test(text));
    } else {
      body.append(renderMarkdown(text, this.#texts.copy));
      element.classList.toggle("quieter", Boolean(notice));
    }
    element.append(create("span", !own && sender?.name ? "author" : "unseen", author), body, create("div", "foot"));
    return element;
  }

  #foot(element, { created_at, status }) {
    const foot = this.#footOf(element, "off");
    foot.replaceChildren(timeElement(created_at, this.#language));
    const word = { failed: this.#texts.failed, cancelled: this.#texts.cancelled, skipped: this.#texts.skipped }[status];
    if (word) foot.append(create("span", "state", word));
  }

  // Of what stands below a message only a refusal is worth being read out.
  #footOf(element, live) {
    const foot = element.querySelector(".foot");
    foot.ariaLive = live;
    return foot;
  }

  #choice(label, act) {
    const button = create("button", "choice", label);
    button.type = "button";
    button.addEventListener("click", act);
    return button;
  }

  async #copy(button) {
    await copyText(button.closest("figure").querySelector("code").textContent);
    button.textContent = this.#texts.copied;
    setTimeout(() => (button.textContent = this.#texts.copy), 2000);
  }
}

function timeElement(iso, language) {
  const moment = new Date(iso);
  const today = moment.toDateString() === new Date().toDateString();
  const style = today ? { timeStyle: "short" } : { dateStyle: "medium", timeStyle: "short" };
  const element = create("time", "", moment.toLocaleString(language, style));
  element.dateTime = iso;
  return element;
}

// The clipboard API exists on secure origins only; the old command does it everywhere else.
async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const before = document.activeElement;
    const area = create("textarea", "unseen");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    before?.focus();
  }
}

function create(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}
