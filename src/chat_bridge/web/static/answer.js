// The answer that is being written: its text so far, put together from deltas, and drawn as it grows.

import { renderMarkdown } from "./markdown.js";

export class RunningAnswer {
  #element;
  #body;
  #copyLabel;
  #turn = null;
  #text = "";
  #length = 0; // in code points, as the server counts
  #ended = null;
  #drawing = false;

  constructor(element, copyLabel) {
    this.#element = element;
    this.#body = element.querySelector(".body");
    this.#copyLabel = copyLabel;
  }

  // False for what comes after its turn has ended.
  add({ turn_id, offset, text }) {
    if (turn_id === this.#ended) return false;
    if (turn_id !== this.#turn) this.#begin(turn_id);
    if (offset > this.#length) return true; // a gap: the whole message will come
    if (offset < this.#length) this.#text = [...this.#text].slice(0, offset).join("");
    this.#text += text;
    this.#length = offset + [...text].length;
    this.#draw();
    return true;
  }

  end() {
    this.#ended = this.#turn;
    this.#begin(null);
  }

  #begin(turn) {
    this.#turn = turn;
    this.#text = "";
    this.#length = 0;
    this.#element.hidden = true;
    this.#body.replaceChildren();
  }

  // Drawing takes a fifth of the time at most, however long the answer gets.
  #draw() {
    if (this.#drawing) return;
    this.#drawing = true;
    requestAnimationFrame(() => {
      const began = performance.now();
      if (this.#text) this.#show();
      setTimeout(() => this.#drawAgain(this.#text), (performance.now() - began) * 4);
    });
  }

  #drawAgain(drawn) {
    this.#drawing = false;
    if (this.#text !== drawn) this.#draw();
  }

  #show() {
    replaceChanged(this.#body, [...renderMarkdown(this.#text, this.#copyLabel).childNodes]);
    this.#element.hidden = false;
  }
}

// Leaves the blocks that stay the same, so that a selection or a focus in them survives.
function replaceChanged(parent, nodes) {
  const same = nodes.findIndex((node, index) => !parent.childNodes[index]?.isEqualNode(node));
  const from = same < 0 ? nodes.length : same;
  while (parent.childNodes.length > from) parent.lastChild.remove();
  parent.append(...nodes.slice(from));
}
