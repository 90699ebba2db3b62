// The files that go with the next message: picked, dropped or pasted, sent ahead one by one, and shown above the box.

import { waitBeforeRetry } from "./backoff.js";
import { create, drawing, fileIcon, fill, readableSize } from "./dom.js";

const AT_ONCE = 2; // a browser opens six connections, and messages need some
const TRIES = 4; // then the visitor decides
const PREVIEWED = ["image/png", "image/jpeg", "image/gif", "image/webp"];

export class Uploads {
  #list;
  #texts;
  #limits;
  #upload;
  #forget;
  #on;
  #files = []; // { file, element, state: "waiting" | "running" | "done" | "failed", uploaded, abort, preview }

  // `limits` are `size` in bytes and `count`; `upload(file, onProgress, signal)` gives what the server has,
  // `forget(id)` takes it back. `on.changed()` hears of every change, `on.said(text)` what should be read out, `on.noted(text)` what should be shown
  // too, and `on.emptied()` that the visitor has removed the last one.
  constructor(list, texts, limits, upload, forget, on) {
    this.#list = list;
    this.#texts = texts;
    this.#limits = limits;
    this.#upload = upload;
    this.#forget = forget;
    this.#on = on;
  }

  get count() {
    return this.#files.length;
  }

  get busy() {
    return this.#files.some(({ state }) => state === "waiting" || state === "running");
  }

  get failed() {
    return this.#files.some(({ state }) => state === "failed");
  }

  add(files) {
    const room = this.#limits.count - this.#files.length;
    for (const file of files.slice(0, room)) this.#addOne(file);
    this.#on.noted(files.length > room ? fill(this.#texts.too_many_files, { count: this.#limits.count }) : "");
    this.#changed();
  }

  // What the server has of them, in their order; they belong to a message now.
  take() {
    const taken = this.#files.map(({ uploaded }) => uploaded);
    for (const entry of this.#files) this.#drop(entry);
    this.#files = [];
    this.#changed();
    return taken;
  }

  // What was uploaded belongs to a conversation that has ended.
  again() {
    for (const entry of this.#files) {
      entry.abort.abort();
      if (entry.state !== "failed") this.#wait(entry);
    }
    this.#changed();
  }

  #addOne(file) {
    const entry = { file, element: create("li", "upload"), abort: new AbortController() };
    const name = file.name || this.#texts.file;
    const remove = create("button", "icon remove");
    remove.type = "button";
    remove.ariaLabel = remove.title = fill(this.#texts.remove, { name });
    remove.append(drawing("M6 6l12 12M18 6L6 18"));
    remove.addEventListener("click", () => this.#remove(entry));
    const about = create("div", "about");
    about.append(create("span", "name", name), create("span", "state", readableSize(file.size)));
    entry.progress = create("progress");
    entry.progress.max = 1;
    entry.progress.ariaLabel = name;
    about.append(entry.progress);
    entry.element.append(this.#picture(entry), about, remove);
    this.#list.append(entry.element);
    this.#files.push(entry);
    if (file.size > this.#limits.size) {
      this.#fail(entry, fill(this.#texts.file_too_large, { size: readableSize(this.#limits.size) }));
    } else this.#wait(entry);
  }

  // A picture of ours, made from the file itself.
  #picture(entry) {
    if (!PREVIEWED.includes(entry.file.type)) return fileIcon();
    entry.preview = URL.createObjectURL(entry.file);
    const image = create("img");
    image.alt = "";
    image.src = entry.preview;
    image.addEventListener("error", () => image.replaceWith(fileIcon()));
    return image;
  }

  #wait(entry) {
    entry.state = "waiting";
    entry.abort = new AbortController();
    entry.element.classList.remove("failed", "done");
    entry.element.querySelector(".state").textContent = readableSize(entry.file.size);
    entry.element.querySelector(".choice")?.remove();
    entry.progress.hidden = false;
    entry.progress.value = 0;
    this.#next();
  }

  #next() {
    if (this.#files.filter(({ state }) => state === "running").length >= AT_ONCE) return;
    const entry = this.#files.find(({ state }) => state === "waiting");
    if (entry) this.#run(entry);
  }

  async #run(entry) {
    const { signal } = entry.abort;
    entry.state = "running";
    for (let failures = 0; !signal.aborted; failures += 1) {
      try {
        const uploaded = await this.#upload(entry.file, (share) => (entry.progress.value = share), signal);
        if (signal.aborted) this.#forget(uploaded.id);
        else this.#finish(entry, uploaded);
        break;
      } catch (error) {
        if (signal.aborted) break;
        if (error.passing === false || failures + 1 >= TRIES) {
          this.#fail(entry, this.#words(error), error.passing !== false);
          break;
        }
        await waitBeforeRetry(failures, error.retryAfter);
      }
    }
    this.#next();
  }

  #words({ status, message }) {
    if (status === 413) return fill(this.#texts.file_too_large, { size: readableSize(this.#limits.size) });
    if (status === 415) return this.#texts.file_type;
    return fill(this.#texts.file_failed, { reason: message || this.#texts.no_answer });
  }

  #finish(entry, uploaded) {
    entry.state = "done";
    entry.uploaded = uploaded;
    entry.element.classList.add("done");
    entry.progress.hidden = true;
    this.#changed();
  }

  #fail(entry, reason, mayPass = false) {
    entry.state = "failed";
    entry.element.classList.add("failed");
    entry.element.querySelector(".state").textContent = reason;
    entry.progress.hidden = true;
    if (mayPass) {
      const retry = create("button", "choice", this.#texts.retry);
      retry.type = "button";
      retry.addEventListener("click", () => {
        this.#wait(entry);
        this.#changed();
      });
      entry.element.querySelector(".about").append(retry);
    }
    this.#on.said(`${entry.file.name}: ${reason}`);
    this.#changed();
  }

  #remove(entry) {
    const near = entry.element.nextElementSibling ?? entry.element.previousElementSibling;
    this.#drop(entry);
    if (entry.state === "done") this.#forget(entry.uploaded.id);
    this.#files = this.#files.filter((other) => other !== entry);
    this.#on.noted("");
    this.#next();
    this.#changed();
    if (near) near.querySelector(".remove").focus();
    else this.#on.emptied();
  }

  #drop({ element, abort, preview }) {
    abort.abort();
    element.remove();
    if (preview) URL.revokeObjectURL(preview);
  }

  #changed() {
    this.#list.hidden = this.#files.length === 0;
    this.#on.changed();
  }
}
