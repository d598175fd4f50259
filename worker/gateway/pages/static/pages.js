// Every page works without this. It keeps the overview fresh, and leads the eye to an answer.
"use strict";

const fresh = document.querySelector("[data-refresh]");

async function refresh() {
  if (document.hidden || fresh.contains(document.activeElement)) return;
  try {
    const answer = await fetch(location.href, { headers: { accept: "text/html" } });
    if (!answer.ok || answer.redirected) return;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const next = page.querySelector("[data-refresh]");
    if (next) fresh.replaceChildren(...next.childNodes);
  } catch {
    // The next turn may go well.
  }
}

if (fresh) setInterval(refresh, Number(fresh.dataset.refresh) * 1000);
document.getElementById("answer")?.focus({ preventScroll: false });
