// Keys that work anywhere on the page; those of a text field are with the field.

// actions: search(), startNew(), help(), escape().
export function listenForKeys(actions) {
  document.addEventListener("keydown", (event) => {
    if (event.isComposing || event.keyCode === 229 || document.querySelector("dialog[open]")) return;
    const isCommand = event.ctrlKey || event.metaKey;
    const key = event.key.toLowerCase();
    let action = null;
    if (isCommand && !event.shiftKey && key === "k") action = actions.search;
    else if (isCommand && event.shiftKey && key === "o") action = actions.startNew;
    else if (isCommand && key === "/") action = actions.help;
    else if (event.key === "Escape") action = actions.escape;
    if (!action) return;
    event.preventDefault();
    action();
  });
}
