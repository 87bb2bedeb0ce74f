// A classic script, so that it runs before the first paint: the theme and the language are right from the start.
"use strict";
(() => {
  const read = (key) => {
    try {
      return localStorage.getItem(key);
    } catch {
      return null; // storage is switched off
    }
  };
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const paint = () => {
    const wanted = root.dataset.themeChoice;
    root.dataset.theme = wanted === "light" || wanted === "dark" ? wanted : system.matches ? "dark" : "light";
  };
  root.dataset.themeChoice = read("minimind.theme") || "auto";
  paint();
  system.addEventListener("change", paint);
  document.addEventListener("themechoice", paint);
  const language = read("minimind.language") || (/^zh/i.test(navigator.language) ? "zh" : "en");
  root.lang = language === "zh" ? "zh-CN" : "en";
})();
