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

  // Nothing is replaced while a button of the mouse or a key is down, or a character is composed: what it was begun on
  // must be there when it ends.
  const held = new Set();
  const hold = (begin, ...ends) => {
    document.addEventListener(begin, () => held.add(begin), true);
    for (const end of ends) document.addEventListener(end, () => held.delete(begin), true);
  };
  hold("pointerdown", "pointerup", "pointercancel");
  hold("keydown", "keyup");
  hold("compositionstart", "compositionend");
  // Their end is told to another window.
  addEventListener("blur", () => held.clear());

  // What an element is in any state of its part.
  const selector = (element) => {
    const name = (attribute, value) => `[${attribute}="${CSS.escape(value)}"]`;
    if (element.id) return `#${CSS.escape(element.id)}`;
    if (element.matches("summary")) {
      const details = element.parentElement.id;
      return details && `#${CSS.escape(details)} > summary`;
    }
    if (element.matches("[href]")) return name("href", element.getAttribute("href"));
    const action = element.form?.getAttribute("action");
    return action && `form${name("action", action)} ${element.name ? name("name", element.name) : "button"}`;
  };

  const replace = (part, fresh) => {
    for (const open of part.querySelectorAll("details[open][id]")) {
      const same = fresh.querySelector("#" + CSS.escape(open.id));
      if (same) same.open = true;
    }
    if (part.innerHTML === fresh.innerHTML) return;
    const focused = part.contains(document.activeElement) && document.activeElement;
    const again = focused && selector(focused);
    const { selectionStart: from, selectionEnd: to, selectionDirection: way } = focused || {};
    // A field goes over as it is, with what somebody wrote into it.
    for (const field of part.querySelectorAll("input, select, textarea")) {
      const same = selector(field);
      if (same) fresh.querySelector(same)?.replaceWith(field);
    }
    part.replaceChildren(...fresh.childNodes);
    const same = again && part.querySelector(again);
    same?.focus({ preventScroll: true });
    if (same === focused && from != null) same.setSelectionRange(from, to, way);
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
          if (held.size) stale = true;
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
