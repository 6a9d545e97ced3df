// Small things on every page: copy buttons; names and focus for what has none.
document.addEventListener("DOMContentLoaded", () => {
  for (const block of document.querySelectorAll("pre.bibtex")) addCopyButton(block);
  // The widgets were written for MathJax 2, which had a queue.
  if (window.MathJax?.typesetPromise)
    MathJax.Hub = { Queue: ([, , element]) => MathJax.typesetPromise([element]) };
  mend();
  new MutationObserver(mend).observe(document.body, { childList: true, subtree: true });
});
window.addEventListener("load", async () => {
  await window.MathJax?.startup?.promise;
  mend();
});

function addCopyButton(block) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    await copy(block);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
  block.before(button);
}

async function copy(block) {
  try {
    await navigator.clipboard.writeText(block.textContent);
  } catch {
    // Without a secure address there is no clipboard; a selection can be copied.
    getSelection().selectAllChildren(block);
    document.execCommand("copy");
  }
}

// What a keyboard or a screen reader would miss.
function mend() {
  // A slider's handle has the role of a slider, but no name: its label stands beside it.
  for (const handle of document.querySelectorAll(".noUi-handle:not([aria-label])")) {
    const label = handle.closest(".jupyter-widgets")?.querySelector(".widget-label");
    handle.setAttribute("aria-label", label?.textContent.trim() || "slider");
  }
  for (const select of document.querySelectorAll(".jupyter-widgets select")) {
    const label = select.closest(".jupyter-widgets").querySelector(".widget-label");
    if (label && !select.ariaLabel) select.ariaLabel = label.textContent.trim();
  }
  // A name that differs from what is shown cannot be spoken: the search button shows a
  // shortcut, a folded cell says what it folds. The arrows of the sidebar show nothing.
  for (const named of document.querySelectorAll(
    ".search-button-field[aria-label], .bd-article summary[aria-label]",
  ))
    named.removeAttribute("aria-label");
  for (const arrow of document.querySelectorAll("li summary:not([aria-label])")) {
    if (arrow.textContent.trim()) continue;
    const link = arrow.closest("li").querySelector("a");
    arrow.setAttribute("aria-label", `Pages of ${link?.textContent.trim()}`);
  }
  // What scrolls sideways can be scrolled by keys.
  const wide = ".highlight pre, .text_html, .output pre, mjx-container[display]";
  for (const region of document.querySelectorAll(`${wide}, .pst-scrollable-table-container`))
    if (region.scrollWidth > region.clientWidth && region.tabIndex < 0)
      region.tabIndex = 0;
}
