// Waiting before another try: longer after every failure, at most 30 seconds, and never in step with other visitors.

const FIRST = 500;
const LONGEST = 30_000;

// `retryAfter` is what the server asked for, in seconds. Only a wait of our own ends early, as soon as the network or
// the reader is back.
export async function waitBeforeRetry(failures, retryAfter = 0) {
  const ended = new AbortController();
  const longest = Math.min(LONGEST, FIRST * 2 ** failures);
  const own = longest * (0.5 + Math.random() / 2);
  if (retryAfter > 0) await sleep(retryAfter * 1000 + own);
  else await Promise.race([sleep(own), comeback(ended.signal)]);
  ended.abort();
}

function sleep(milliseconds) {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

function comeback(signal) {
  return new Promise((resolve) => {
    addEventListener("online", resolve, { signal });
    document.addEventListener("visibilitychange", () => document.hidden || resolve(), { signal });
  });
}
