// Where the user writes: the text, switches, how full the context is, send and stop.
import { h, icon } from "./dom.js";
import { number, t } from "./i18n.js";
import { read, write } from "./local.js";
import { path } from "./tree.js";

const MAX_HEIGHT = 240; // pixels

export class Composer {
  // actions: send(text), stop(), toggle(name), editLast().
  constructor(form, { session, settings, page, models, actions }) {
    Object.assign(this, { form, session, settings, page, models, actions });
    this.input = h("textarea", { id: "input", rows: 1, enterkeyhint: "send", autocomplete: "off" });
    this.chips = h("div", { class: "chips" });
    this.status = h("span", { class: "wait quiet" });
    this.meterFill = h("div");
    this.meterText = h("span");
    this.meter = h(
      "div",
      { class: "meter", role: "meter", "aria-valuemin": 0 },
      h("div", { class: "meter-bar" }, this.meterFill),
      this.meterText,
    );
    this.button = h("button", { type: "submit", class: "send" });
    form.append(this.input, h("div", { class: "toolbar" }, this.chips, this.status, this.meter, this.button));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.session.isRunning()) this.actions.stop();
      else this.submit();
    });
    this.input.addEventListener("input", () => this.changed());
    this.input.addEventListener("keydown", (event) => this.pressed(event));
  }

  // `text` of a question that could not be sent, or of a draft.
  set text(text) {
    this.input.value = text;
    this.changed();
  }

  get text() {
    return this.input.value;
  }

  focus() {
    this.input.focus();
  }

  submit() {
    const text = this.text.trim();
    if (!text || this.session.isRunning() || !this.models().length) return;
    this.text = "";
    this.actions.send(text);
  }

  changed() {
    write(this.draftKey(), this.text || null);
    this.input.style.height = "auto";
    this.input.style.height = `${Math.min(this.input.scrollHeight, MAX_HEIGHT)}px`;
    this.showButton();
  }

  draftKey() {
    return this.session.current.messages.length ? `draft.${this.session.current.id}` : "draft.new";
  }

  // What was written but not sent, in the conversation that is shown now.
  restoreDraft() {
    this.text = read(this.draftKey(), "");
  }

  pressed(event) {
    if (event.isComposing || event.keyCode === 229) return; // Enter chooses a word in an input method
    if (event.key === "Enter" && !event.shiftKey && !event.altKey) {
      event.preventDefault();
      this.submit();
    } else if (event.key === "ArrowUp" && !this.text) {
      event.preventDefault();
      this.actions.editLast();
    }
  }

  // Texts, switches and the state of everything.
  update() {
    this.input.setAttribute("aria-label", t("message"));
    const [model] = this.models();
    this.input.placeholder = model ? t("askModel", { model: model.name }) : t("message");
    this.showChips(model);
    this.showButton();
    this.showMeter(model);
  }

  showChips(model) {
    const focused = document.activeElement?.dataset?.chip;
    const chip = (name, picture, isOn, isPossible, title) =>
      h(
        "button",
        {
          type: "button",
          class: "chip",
          "data-chip": name,
          "aria-pressed": String(isOn),
          disabled: !isPossible,
          title,
          onclick: () => this.actions.toggle(name),
        },
        icon(picture),
        h("span", {}, t(name)),
      );
    const mode = model?.thinking ?? "never";
    const { page, settings } = this;
    const chips = [];
    if (mode !== "never") {
      const isOn = mode === "always" || settings.thinking;
      chips.push(
        chip("thinking", "bulb", isOn, mode === "switch", t(mode === "always" ? "thinkingAlways" : "thinkingHint")),
      );
    }
    if (page().tools.length) chips.push(chip("tools", "tool", settings.tools.length > 0, true, t("toolsHint")));
    if (page().models.length > 1) chips.push(chip("compare", "columns", settings.compare, true, t("compareHint")));
    this.chips.replaceChildren(...chips);
    if (focused) this.chips.querySelector(`[data-chip="${focused}"]`)?.focus();
  }

  showButton() {
    const isRunning = this.session.isRunning();
    const label = t(isRunning ? "stop" : "send");
    const state = `${isRunning} ${label}`;
    if (this.buttonState !== state) {
      this.buttonState = state;
      this.button.replaceChildren(icon(isRunning ? "stop" : "send"));
      this.button.setAttribute("aria-label", label);
      this.button.title = label;
      this.button.classList.toggle("stops", isRunning);
    }
    this.button.disabled = !isRunning && (!this.text.trim() || !this.models().length);
  }

  // How much of the context the conversation has taken, by the last answer's count.
  showMeter(model) {
    const last = path(this.session.current).findLast(({ stats }) => stats?.tokens !== undefined);
    this.meter.hidden = !last || !model;
    if (this.meter.hidden) return;
    const used = last.stats.prompt_tokens + last.stats.tokens;
    const all = model.max_context;
    const text = t("contextUsed", { used: number(used), all: number(all) });
    this.meterFill.style.width = `${Math.min(100, (100 * used) / all)}%`;
    this.meter.classList.toggle("nearly-full", used > 0.85 * all);
    this.meterText.textContent = `${number(used)} / ${number(all)}`;
    this.meter.title = text;
    this.meter.setAttribute("aria-label", t("context"));
    this.meter.setAttribute("aria-valuetext", text);
    this.meter.setAttribute("aria-valuemax", all);
    this.meter.setAttribute("aria-valuenow", Math.min(used, all));
  }

  // The queue is full: seconds until the next try; null = no longer.
  showWait(secondsLeft) {
    this.status.textContent = secondsLeft === null ? "" : t("queueWait", { n: secondsLeft });
  }
}
