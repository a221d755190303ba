// The one convenience a page has: open or close all code at once.
document.addEventListener("DOMContentLoaded", () => {
  const button = document.getElementById("all-code");
  const blocks = [...document.querySelectorAll("details.code")];
  if (!button || !blocks.length) return;
  button.hidden = false;
  button.addEventListener("click", () => {
    const open = blocks.some((block) => !block.open);
    blocks.forEach((block) => { block.open = open; });
    button.textContent = open ? "hide all code" : "show all code";
  });
});
