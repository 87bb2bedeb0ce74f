// Light, dark, or as the system has it. boot.js paints; this is the button.
import { icon } from "./dom.js";
import { t } from "./i18n.js";
import { write } from "./local.js";

const CHOICES = ["auto", "light", "dark"];
const PICTURES = { auto: "auto", light: "sun", dark: "moon" };

export function themeButton(button) {
  const root = document.documentElement;
  const show = () => {
    const choice = CHOICES.includes(root.dataset.themeChoice) ? root.dataset.themeChoice : "auto";
    const label = t("theme", { choice: t(`theme_${choice}`) });
    button.replaceChildren(icon(PICTURES[choice]));
    button.setAttribute("aria-label", label);
    button.title = label;
  };
  button.addEventListener("click", () => {
    const next = CHOICES[(CHOICES.indexOf(root.dataset.themeChoice) + 1) % CHOICES.length];
    root.dataset.themeChoice = next;
    write("theme", next);
    document.dispatchEvent(new Event("themechoice"));
    show();
  });
  return show;
}
