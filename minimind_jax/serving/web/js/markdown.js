// Stand-in until the real one is merged: plain text.
export function renderMarkdown(text) {
  const fragment = document.createDocumentFragment();
  const p = document.createElement("p");
  p.textContent = text;
  fragment.append(p);
  return fragment;
}
