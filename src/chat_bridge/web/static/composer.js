// The box a message is written in: it grows, counts near the limit, sends with Enter and knows the commands.

import { fill } from "./dom.js";

const COMMANDS = ["help", "new", "stop", "status"];

export class Composer {
  #form;
  #area;
  #send;
  #counter;
  #options;
  #said;
  #note;
  #texts;
  #limit;
  #uploads;
  #onSend;
  #waiting = null; // the text that is to be sent when the files are uploaded
  #chosen = -1;

  // `uploads` are the files that go along; `onSend(text, files)`.
  constructor(form, texts, limit, uploads, onSend) {
    this.#form = form;
    this.#area = form.querySelector("textarea");
    this.#send = form.querySelector("#send");
    this.#counter = form.querySelector("#counter");
    this.#options = form.querySelector("#commands");
    this.#said = form.querySelector("#said");
    this.#note = form.querySelector("#note");
    this.#texts = texts;
    this.#limit = limit;
    this.#uploads = uploads;
    this.#onSend = onSend;
    form.addEventListener("submit", (event) => this.#submit(event));
    this.#area.addEventListener("input", () => this.#look());
    this.#area.addEventListener("keydown", (event) => this.#press(event));
    this.#area.addEventListener("blur", () => this.#hideCommands());
    this.#look();
  }

  // Not on phones, where a focus brings up the keyboard over half of the messages.
  focus() {
    if (matchMedia("(pointer: fine)").matches) this.#area.focus();
  }

  filesChanged() {
    this.#look();
    if (this.#waiting === null || this.#uploads.busy) return;
    const text = this.#waiting;
    const now = this.#area.value.trimStart();
    this.#waiting = null;
    this.note("");
    if (this.#uploads.failed || (text === "" && this.#uploads.count === 0)) return;
    this.#onSend(text, this.#uploads.take());
    this.#write(now.startsWith(text) ? now.slice(text.length).trimStart() : now); // what was written since stays
  }

  // To be read out.
  say(text) {
    this.#said.textContent = text;
  }

  // To be shown, and read out.
  note(text) {
    this.#note.textContent = text;
    this.#note.hidden = text === "";
  }

  #submit(event) {
    event.preventDefault();
    if (this.#send.disabled) return;
    const text = this.#area.value.trim();
    const isCommand = COMMANDS.some((name) => `/${name}` === text);
    if (this.#uploads.busy && !isCommand) {
      this.#waiting = text;
      this.note(this.#texts.sends_when_uploaded);
      return;
    }
    if (!this.#uploads.busy) this.note("");
    this.#onSend(text, isCommand ? [] : this.#uploads.take());
    this.#write("");
    this.#area.focus();
  }

  #write(text) {
    this.#area.value = text;
    this.#look();
  }

  // Enter that ends the composition of a Japanese or Vietnamese word isn't meant to send; Safari tells by the key code.
  #press(event) {
    if (event.isComposing || event.keyCode === 229) return;
    if (!this.#options.hidden && this.#pressInCommands(event)) event.preventDefault();
    else if (event.key === "Enter" && !event.shiftKey) this.#submit(event);
  }

  // True for a key that the list of commands has used.
  #pressInCommands({ key, shiftKey }) {
    const options = [...this.#options.children];
    if (key === "ArrowDown") this.#choose((this.#chosen + 1) % options.length);
    else if (key === "ArrowUp") this.#choose((Math.max(this.#chosen, 0) + options.length - 1) % options.length);
    else if (key === "Escape") this.#hideCommands();
    else if (key === "Enter" && this.#chosen >= 0) this.#run(options[this.#chosen]);
    else if (key === "Tab" && !shiftKey && this.#chosen >= 0) this.#write(options[this.#chosen].dataset.command);
    else return false;
    return true;
  }

  #run(option) {
    this.#write(option.dataset.command);
    this.#form.requestSubmit();
  }

  #look() {
    const text = this.#area.value;
    const left = this.#limit - [...text.trim()].length;
    this.#grow();
    this.#count(left);
    this.#send.disabled = (text.trim() === "" && this.#uploads.count === 0) || left < 0 || this.#uploads.failed;
    this.#showCommands(text);
  }

  #grow() {
    this.#area.style.height = "auto";
    this.#area.style.height = `${this.#area.scrollHeight}px`;
  }

  #count(left) {
    this.#counter.hidden = left > Math.min(200, this.#limit / 5);
    this.#counter.textContent = fill(left < 0 ? this.#texts.too_long : this.#texts.characters_left, { count: Math.abs(left) });
    const wasTooLong = this.#area.ariaInvalid === "true";
    this.#area.ariaInvalid = left < 0;
    if (left < 0 && !wasTooLong) this.#said.textContent = this.#counter.textContent;
  }

  #showCommands(text) {
    const fitting = text.startsWith("/") ? COMMANDS.filter((name) => `/${name}`.startsWith(text)) : [];
    if (fitting.length === 0 || fitting.some((name) => `/${name}` === text)) return this.#hideCommands();
    this.#options.replaceChildren(...fitting.map((name) => this.#option(name)));
    this.#choose(-1);
    if (this.#options.hidden) this.#said.textContent = fill(this.#texts.commands_shown, { count: fitting.length });
    this.#options.hidden = false;
  }

  #hideCommands() {
    this.#options.hidden = true;
    this.#choose(-1);
  }

  #option(name) {
    const option = document.createElement("li");
    const command = document.createElement("b");
    command.textContent = `/${name}`;
    option.append(command, ` ${this.#texts[`command_${name}`]}`);
    option.id = `command-${name}`;
    option.role = "option";
    option.dataset.command = `/${name}`;
    option.addEventListener("pointerdown", (event) => event.preventDefault()); // the focus stays in the box
    option.addEventListener("click", () => this.#run(option));
    return option;
  }

  #choose(index) {
    this.#chosen = index;
    [...this.#options.children].forEach((option, at) => (option.ariaSelected = at === index));
    const chosen = this.#options.children[index];
    if (chosen) this.#area.setAttribute("aria-activedescendant", chosen.id);
    else this.#area.removeAttribute("aria-activedescendant");
  }
}
