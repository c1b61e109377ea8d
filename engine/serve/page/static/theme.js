// Runs before the page is drawn: without it a dark page would flash light.
"use strict";
document.documentElement.dataset.theme = (() => {
  try {
    return localStorage.getItem("calotype.theme") ?? "auto";
  } catch {
    return "auto"; // storage is blocked
  }
})();
