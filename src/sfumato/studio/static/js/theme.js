// Before anything is shown, so that a dark page does not flash white. Not a module: modules run late.
(function () {
  var kept = null;
  try { kept = localStorage.getItem("sfumato.theme"); } catch (error) { /* storage is off: follow the system */ }
  var dark = window.matchMedia("(prefers-color-scheme: dark)");
  function apply() { document.documentElement.dataset.theme = kept || (dark.matches ? "dark" : "light"); }
  dark.addEventListener("change", apply);
  apply();
  window.toggleTheme = function () {
    kept = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("sfumato.theme", kept); } catch (error) { /* for this page only */ }
    apply();
    return kept;
  };
})();
