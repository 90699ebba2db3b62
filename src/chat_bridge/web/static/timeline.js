// The messages on the page, strictly in the order of `seq` and each of them once; below them what is not sent yet.

import { create } from "./dom.js";
import { renderFiles, showAsLink } from "./files.js";
import { renderMarkdown } from "./markdown.js";

const COMMAND = /^\/\w+$/;

export class Timeline {
  #log;
  #texts;
  #language;
  #onRetry;
  #onDiscard;
  #linkAge;
  #renew;
  #shown = []; // { seq, element }, ascending
  #unsent = new Map(); // client_msg_id -> element

  // Links to files are good for `linkAge` milliseconds; `renew(seq)` reads a message again.
  constructor(log, texts, { onRetry, onDiscard, linkAge, renew }) {
    this.#log = log;
    this.#texts = texts;
    this.#language = document.documentElement.lang;
    this.#onRetry = onRetry;
    this.#onDiscard = onDiscard;
    this.#linkAge = linkAge;
    this.#renew = renew;
    log.parentElement.addEventListener("click", ({ target }) => {
      const button = target.closest("button.copy");
      if (button) this.#copy(button);
    });
    log.addEventListener("click", (event) => this.#open(event));
    log.addEventListener("error", ({ target }) => this.#notShown(target), true); // it doesn't bubble
  }

  get empty() {
    return this.#log.childElementCount === 0;
  }

  get firstSeq() {
    return this.#shown[0]?.seq;
  }

  get waitsForFiles() {
    return this.#shown.some(({ files }) => files?.some(({ status }) => status === "waiting"));
  }

  // Many at once, which are not read out.
  showHistory(messages) {
    this.#log.ariaLive = "off";
    for (const message of messages) this.show(message);
    setTimeout(() => (this.#log.ariaLive = "polite"), 500);
  }

  // A message as it is now, if it is on the page.
  update(message) {
    const same = this.#shown.find(({ seq }) => seq === message.seq);
    if (same) this.#showFiles(same, message.attachments);
  }

  // False when it was here before; then only its status and its files may have changed.
  show(message) {
    let after = this.#shown.length;
    while (after > 0 && this.#shown[after - 1].seq > message.seq) after -= 1;
    const same = this.#shown[after - 1];
    if (same?.seq === message.seq) {
      this.#foot(same.element, message);
      this.#showFiles(same, message.attachments);
      return false;
    }
    const element = this.#unsent.get(message.client_msg_id) ?? this.#build(message);
    this.#unsent.delete(message.client_msg_id);
    element.classList.remove("waiting", "refused");
    element.dataset.seq = message.seq;
    this.#foot(element, message);
    this.#place(element, this.#shown[after]?.element);
    const shown = { seq: message.seq, element };
    this.#showFiles(shown, message.attachments);
    this.#shown.splice(after, 0, shown);
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
      ...(message.final ? [] : [this.#choice(this.#texts.retry, () => this.#onRetry(message))]),
      this.#choice(this.#texts.discard, () => this.#discard(message)),
    );
    this.#log.append(element);
  }

  // Says something below all messages, and begins to count anew: what comes next is another conversation.
  beginAnew(text) {
    this.#shown = [];
    this.#place(create("p", "notice", text));
  }

  // What is not sent yet stays.
  clear() {
    for (const { element } of this.#shown) element.remove();
    this.#shown = [];
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
    this.#showFiles({ element }, message.attachments);
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
    body.hidden = text === "";
    element.append(create("span", !own && sender?.name ? "author" : "unseen", author), body, create("div", "foot"));
    return element;
  }

  // Again only for what has changed, or before its links end: what plays or is looked at stays as it is. What the
  // upload said, without a status, is less than what the message says, which may have come before the receipt.
  #showFiles(shown, files = []) {
    if (shown.files && files.some(({ status }) => !status)) return;
    const same = JSON.stringify(files.map(withoutLinks)) === JSON.stringify((shown.files ?? []).map(withoutLinks));
    if (same && !this.#isOld(shown)) return;
    shown.files = files;
    shown.readAt = Date.now();
    shown.element.querySelector(".files")?.remove();
    if (files.length > 0) shown.element.querySelector(".body").after(renderFiles(files, this.#texts));
  }

  #isOld({ readAt = 0 }) {
    return Date.now() - readAt > this.#linkAge;
  }

  #of(element) {
    const article = element.closest("article");
    return this.#shown.find((shown) => shown.element === article);
  }

  // A page that is open for long has links that have ended.
  async #open(event) {
    const anchor = event.target.closest("a[data-file]");
    const shown = anchor && this.#of(anchor);
    if (!shown || !this.#isOld(shown)) return;
    event.preventDefault();
    await this.#renew(shown.seq);
    if (!this.#isOld(shown)) shown.element.querySelector(`a[data-file="${anchor.dataset.file}"]`)?.click();
  }

  #notShown(element) {
    if (!element.closest(".files")) return;
    const shown = this.#of(element);
    if (shown && this.#isOld(shown)) this.#renew(shown.seq);
    else showAsLink(element);
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

function withoutLinks({ url, thumbnail_url, ...file }) {
  return [file, Boolean(url), Boolean(thumbnail_url)];
}
