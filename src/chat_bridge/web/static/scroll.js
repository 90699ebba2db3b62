// Keeps the newest message in sight, but only for a reader who is at the bottom already.

const NEAR = 48;

export class Scroll {
  #scroller;
  #atBottom = true;
  #onBottom;

  constructor(scroller, content, onBottom) {
    this.#scroller = scroller;
    this.#onBottom = onBottom;
    scroller.addEventListener("scroll", () => this.#look(), { passive: true });
    const sizes = new ResizeObserver(() => this.#atBottom && this.toBottom());
    sizes.observe(content);
    sizes.observe(scroller);
  }

  get atBottom() {
    return this.#atBottom;
  }

  toBottom() {
    this.#atBottom = true;
    this.#scroller.scrollTop = this.#scroller.scrollHeight;
  }

  // What is on the screen stays where it is while `change` puts something above it.
  keepPlace(change) {
    const below = this.#scroller.scrollHeight - this.#scroller.scrollTop;
    change();
    this.#scroller.scrollTop = this.#scroller.scrollHeight - below;
  }

  #look() {
    const { scrollHeight, scrollTop, clientHeight } = this.#scroller;
    this.#atBottom = scrollHeight - scrollTop - clientHeight < NEAR;
    if (this.#atBottom) this.#onBottom();
  }
}
