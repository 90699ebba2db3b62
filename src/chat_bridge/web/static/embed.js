// The launcher: a round button on any site that opens the chat of this bridge in a frame.
//
//   <script src="https://bridge.example/embed.js" async></script>
//
// Attributes: data-title, data-color, data-position ("left" or "right"), data-open ("true").
// It lives in a shadow root, so neither side's styles reach the other, and asks the bridge for nothing before it is
// opened. Which sites may show the frame is the bridge's decision.

(() => {
  const script = document.currentScript;
  const origin = new URL(script.src).origin;
  const title = script.dataset.title || "Chat";

  const host = document.createElement("div");
  const root = host.attachShadow({ mode: "open" });
  const panel = create("div", { className: "panel", hidden: true, role: "dialog", ariaLabel: title });
  const button = create("button", { type: "button", ariaLabel: title, ariaExpanded: "false", ariaHasPopup: "dialog" });
  const dot = create("span", { className: "dot", hidden: true });
  let frame = null;

  const styles = new CSSStyleSheet(); // unlike a style element, a site's content security policy allows it
  styles.replaceSync(`
    :host { all: initial !important; }
    [hidden] { display: none !important; }
    button, .panel { position: fixed; z-index: 2147483000; box-sizing: border-box; }
    button {
      right: max(20px, env(safe-area-inset-right)); bottom: max(20px, env(safe-area-inset-bottom));
      display: grid; place-items: center; width: 56px; height: 56px; padding: 0; border: 0; border-radius: 50%;
      background: #2f5fd0; color: #fff; box-shadow: 0 2px 6px rgb(0 0 0 / 20%), 0 6px 20px rgb(0 0 0 / 18%); cursor: pointer;
    }
    button:hover { filter: brightness(1.08); }
    button:focus-visible { outline: 3px solid #fff; outline-offset: -6px; box-shadow: 0 0 0 3px #1c2128; }
    svg { width: 26px; height: 26px; fill: none; stroke: currentcolor; stroke-width: 2; stroke-linecap: round; stroke-linejoin: round; }
    button[aria-expanded="true"] .bubble, button[aria-expanded="false"] .cross { display: none; }
    .dot { position: absolute; top: 2px; right: 2px; width: 12px; height: 12px; border: 2px solid #fff; border-radius: 50%; background: #d3302f; }
    .panel {
      right: max(20px, env(safe-area-inset-right)); bottom: calc(max(20px, env(safe-area-inset-bottom)) + 68px);
      width: 400px; height: min(640px, calc(100dvh - 120px)); overflow: hidden; border-radius: 16px;
      background: canvas; color-scheme: light dark; box-shadow: 0 4px 12px rgb(0 0 0 / 12%), 0 12px 48px rgb(0 0 0 / 24%);
    }
    iframe { display: block; width: 100%; height: 100%; border: 0; color-scheme: normal; }
    .left button, .left .panel { right: auto; left: max(20px, env(safe-area-inset-left)); }
    @media (max-width: 480px) {
      .panel, .left .panel { inset: 0; width: auto; height: auto; border-radius: 0; }
      .ready button[aria-expanded="true"] { display: none; } /* the page in the frame has its own button to close */
    }
    @media (prefers-reduced-motion: no-preference) {
      .panel { animation: rise 0.16s ease-out; }
      @keyframes rise { from { opacity: 0; transform: translateY(8px); } }
    }
  `);
  root.adoptedStyleSheets = [styles];

  const corner = create("div", { className: script.dataset.position === "left" ? "left" : "right" });
  button.append(
    drawing("bubble", "M4 6.5A2.5 2.5 0 0 1 6.5 4h11A2.5 2.5 0 0 1 20 6.5v7a2.5 2.5 0 0 1-2.5 2.5H11l-4.5 4v-4A2.5 2.5 0 0 1 4 13.5z"),
    drawing("cross", "M6 9l6 6 6-6"),
    dot,
  );
  corner.append(panel, button);
  root.append(corner);

  button.addEventListener("click", () => (panel.hidden ? open() : close()));
  document.addEventListener("keydown", (event) => event.key === "Escape" && !panel.hidden && close());
  addEventListener("message", (event) => {
    if (event.origin === origin && frame && event.source === frame.contentWindow) hear(event.data);
  });
  if (document.body) appear();
  else document.addEventListener("DOMContentLoaded", appear);

  function appear() {
    document.body.append(host);
    paint(script.dataset.color);
    if (script.dataset.open === "true") open();
  }

  function open() {
    panel.hidden = false;
    button.ariaExpanded = "true";
    showUnread(0);
    if (frame) tellShown(true);
    else load();
    frame.focus();
  }

  function close() {
    const hadFocus = root.activeElement !== null;
    panel.hidden = true;
    button.ariaExpanded = "false";
    tellShown(false);
    if (hadFocus) button.focus();
  }

  function load() {
    frame = create("iframe", { title, allow: "clipboard-write", src: `${origin}/chat?embed=1` });
    frame.addEventListener("load", () => tellShown(!panel.hidden));
    panel.append(frame);
  }

  function hear({ type, count }) {
    if (type === "chat-bridge:ready") corner.classList.add("ready");
    if (type === "chat-bridge:close" && !panel.hidden) close();
    if (type === "chat-bridge:unread" && panel.hidden) showUnread(count);
  }

  function tellShown(shown) {
    frame.contentWindow.postMessage({ type: "chat-bridge:shown", shown }, origin);
  }

  function showUnread(count) {
    dot.hidden = count === 0;
    button.ariaLabel = count === 0 ? title : `${title} (${count})`;
  }

  function paint(color) {
    if (!color || !CSS.supports("color", color)) return;
    button.style.background = color;
    const [red, green, blue] = getComputedStyle(button).backgroundColor.match(/[\d.]+/g).map(Number);
    if (red * 0.299 + green * 0.587 + blue * 0.114 > 150) button.style.color = "#1c2128";
  }

  function create(tag, properties) {
    return Object.assign(document.createElement(tag), properties);
  }

  function drawing(className, path) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
    svg.setAttribute("viewBox", "0 0 24 24");
    svg.setAttribute("class", className);
    svg.setAttribute("aria-hidden", "true");
    line.setAttribute("d", path);
    svg.append(line);
    return svg;
  }
})();
