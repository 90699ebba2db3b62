// Where files come from: the button, things dropped on the page, and the clipboard.

export class FileSource {
  #zone;
  #onFiles;

  constructor(button, input, area, zone, onFiles) {
    this.#zone = zone;
    this.#onFiles = onFiles;
    button.addEventListener("click", () => input.click());
    input.addEventListener("change", () => {
      this.#give([...input.files]);
      input.value = ""; // so that the same file can be picked again
    });
    area.addEventListener("paste", (event) => this.#paste(event));
    addEventListener("dragenter", (event) => this.#show(event));
    addEventListener("dragover", (event) => this.#show(event));
    addEventListener("dragleave", ({ relatedTarget }) => (zone.hidden = relatedTarget === null || zone.hidden));
    addEventListener("drop", (event) => this.#drop(event));
  }

  #give(files) {
    if (files.length > 0) this.#onFiles(files);
  }

  // Word processors put a picture of a text beside the text.
  #paste(event) {
    const { files, types } = event.clipboardData;
    if (files.length === 0 || (types.includes("text/plain") && types.includes("text/html"))) return;
    event.preventDefault();
    this.#give([...files]);
  }

  #show(event) {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault(); // without this the browser would leave the page for the file
    event.dataTransfer.dropEffect = "copy";
    this.#zone.hidden = false;
  }

  #drop(event) {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    this.#zone.hidden = true;
    const items = [...event.dataTransfer.items].filter(({ kind }) => kind === "file");
    const files = items.filter((item) => !item.webkitGetAsEntry?.()?.isDirectory).map((item) => item.getAsFile());
    this.#give(files.filter(Boolean));
  }
}
