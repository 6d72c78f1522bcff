// Fetches the page again when the controller has news, and replaces the parts that changed.
(() => {
  "use strict";
  const status = document.getElementById("live");
  let busy = false;
  let stale = false;

  const say = (state, text) => {
    if (status.dataset.state === state) return;
    status.dataset.state = state;
    status.querySelector("span").textContent = text;
  };

  // A part is left alone while somebody selects text in it.
  const selecting = (part) => {
    const selection = document.getSelection();
    return selection && !selection.isCollapsed && part.contains(selection.anchorNode);
  };

  // And while a button of the mouse is down: what is pressed must be there when it is let go.
  let pressed = false;
  document.addEventListener("pointerdown", () => (pressed = true), true);
  for (const end of ["pointerup", "pointercancel"]) {
    document.addEventListener(end, () => (pressed = false), true);
  }

  const replace = (part, fresh) => {
    for (const open of part.querySelectorAll("details[open][id]")) {
      const same = fresh.querySelector("#" + CSS.escape(open.id));
      if (same) same.open = true;
    }
    if (part.innerHTML === fresh.innerHTML) return;
    const focused = part.contains(document.activeElement) && document.activeElement;
    const href = focused && focused.getAttribute("href");
    const action = focused && focused.form?.getAttribute("action");
    const details = focused && focused.matches("summary") && focused.parentElement.id;
    part.replaceChildren(...fresh.childNodes);
    const same = href
      ? `[href="${CSS.escape(href)}"]`
      : details
        ? `#${CSS.escape(details)} > summary`
        : action && `form[action="${CSS.escape(action)}"] button`;
    if (same) part.querySelector(same)?.focus({ preventScroll: true });
  };

  const refresh = async () => {
    if (busy || document.hidden) {
      stale = true;
      return;
    }
    busy = true;
    stale = false;
    try {
      const response = await fetch(location.href, { headers: { Accept: "text/html" } });
      // The login is over.
      if (response.redirected) return location.assign(response.url);
      if (response.ok) {
        const page = new DOMParser().parseFromString(await response.text(), "text/html");
        for (const part of document.querySelectorAll("[data-live]")) {
          const fresh = page.getElementById(part.id);
          if (!fresh || selecting(part)) continue;
          if (pressed) stale = true;
          else replace(part, fresh);
        }
      }
    } catch {
      // The stream below notices and says so.
    } finally {
      busy = false;
      if (stale && !document.hidden) setTimeout(refresh, 1000);
    }
  };

  const source = new EventSource("/changes");
  source.onopen = () => say("on", "Live");
  source.onmessage = refresh;
  source.onerror = () => say("off", "Not connected to the controller");
  document.addEventListener("visibilitychange", () => stale && refresh());

  // Ages go on between the news.
  const age = (seconds) => {
    const thin = "\u202f";
    if (seconds < 2) return "now";
    if (seconds < 60) return `${seconds}${thin}s ago`;
    if (seconds < 3600) return `${Math.floor(seconds / 60)}${thin}min ago`;
    if (seconds < 172800) return `${Math.floor(seconds / 3600)}${thin}h ago`;
    return `${Math.floor(seconds / 86400)}${thin}days ago`;
  };
  setInterval(() => {
    if (document.hidden) return;
    for (const time of document.querySelectorAll("time[data-age]")) {
      const text = age(Math.max(0, Math.floor((Date.now() - Date.parse(time.dateTime)) / 1000)));
      if (time.textContent !== text) time.textContent = text;
    }
  }, 1000);
  // A device that fell silent brings no news: look by ourselves now and then.
  setInterval(refresh, 60000);
})();
