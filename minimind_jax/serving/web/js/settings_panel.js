// The panel with all settings.
import { h, iconButton } from "./dom.js";
import { number, t } from "./i18n.js";
import { MAX_STOPS, SAMPLING, isAllowed, isChanged, resetSampling } from "./settings.js";

export class SettingsPanel {
  // changed(name): a setting has another value. systemChanged(text).
  constructor({ settings, page, session, changed, systemChanged, close }) {
    Object.assign(this, { settings, page, session, changed, systemChanged });
    this.root = document.getElementById("settings");
    this.close = close;
  }

  update() {
    if (this.root.hidden) return;
    const focused = document.activeElement?.id;
    const scroll = this.root.scrollTop;
    const { settings } = this;
    this.reset = h(
      "button",
      {
        type: "button",
        class: "button small",
        id: "reset-sampling",
        onclick: () => {
          resetSampling(settings);
          this.changed("sampling");
          this.update();
        },
      },
      t("reset"),
    );
    this.root.replaceChildren(
      h(
        "div",
        { class: "panel-head" },
        h("h2", {}, t("settings")),
        iconButton("close", t("close"), { id: "close-settings", onclick: this.close }),
      ),
      this.systemField(),
      this.switches(),
      h(
        "section",
        {},
        h("div", { class: "section-head" }, h("h3", {}, t("sampling")), this.reset),
        h("p", { class: "quiet" }, t("samplingHint")),
        SAMPLING.map((field) => this.samplingField(field)),
        this.stopField(),
      ),
    );
    this.showReset();
    this.root.scrollTop = scroll;
    if (focused && this.root.querySelector(`#${CSS.escape(focused)}`)) document.getElementById(focused).focus();
  }

  showReset() {
    this.reset.disabled = !isChanged(this.settings);
  }

  systemField() {
    const input = h("textarea", { class: "field-input", id: "system", rows: 3, placeholder: t("systemNone") });
    input.value = this.session.current.system;
    input.addEventListener("input", () => this.systemChanged(input.value));
    return h(
      "section",
      {},
      h("h3", {}, h("label", { for: "system" }, t("system"))),
      input,
      h("p", { class: "quiet" }, t("systemHint")),
    );
  }

  switches() {
    const { settings, page } = this;
    const box = (id, label, isOn, change) => {
      const input = h("input", { type: "checkbox", id, checked: isOn });
      input.addEventListener("change", () => change(input.checked));
      return h("div", { class: "check" }, input, h("label", { for: id }, label));
    };
    const set = (name) => (isOn) => {
      settings[name] = isOn;
      this.changed(name);
    };
    const setTool = (name) => (isOn) => {
      settings.tools = settings.tools.filter((other) => other !== name);
      if (isOn) settings.tools.push(name);
      this.changed("tools");
    };
    const tools = page().tools.map(({ function: { name, description } }) =>
      box(
        `tool-${name}`,
        h("span", {}, h("code", {}, name), ` ${t(`tool_${name}`, {}, description)}`),
        settings.tools.includes(name),
        setTool(name),
      ),
    );
    return h(
      "section",
      {},
      box("probabilities", t("probabilities"), settings.probabilities, set("probabilities")),
      tools.length > 0 &&
        h(
          "div",
          { role: "group", "aria-labelledby": "tools-title" },
          h("h3", { id: "tools-title" }, t("tools")),
          tools,
          box("confirm-tools", t("confirmTools"), settings.confirmTools, set("confirmTools")),
        ),
    );
  }

  samplingField(field) {
    const { settings } = this;
    const { name } = field;
    const id = `set-${name}`;
    const fallback = field.neutral ?? this.page().defaults[name] ?? null;
    const hint = name === "seed" ? t("random") : fallback === null ? t("automatic") : String(fallback);
    const input = h("input", {
      class: "field-input",
      id,
      inputmode: field.integer ? "numeric" : "decimal",
      autocomplete: "off",
      placeholder: hint,
      value: settings[name] ?? "",
      "aria-describedby": `${id}-help`,
    });
    const slider =
      field.slider &&
      h("input", {
        type: "range",
        min: field.slider[0],
        max: field.slider[1],
        step: field.step,
        value: settings[name] ?? fallback ?? field.slider[0],
        "aria-label": t(name),
      });
    const problem = h("p", { class: "field-error", role: "alert", hidden: true });
    const row = h(
      "div",
      { class: "sampling" },
      h("label", { for: id }, t(name)),
      input,
      slider,
      h("p", { class: "quiet", id: `${id}-help` }, t(`${name}Help`)),
      problem,
    );
    const take = (value) => {
      settings[name] = value;
      row.classList.toggle("changed", value !== null);
      this.showReset();
      this.changed(name);
    };
    input.addEventListener("input", () => {
      const text = input.value.trim();
      const value = text === "" ? null : Number(text);
      const isGood = value === null || isAllowed(field, value);
      input.setAttribute("aria-invalid", String(!isGood));
      problem.hidden = isGood;
      problem.textContent = isGood ? "" : rangeOf(field);
      if (!isGood) return;
      if (slider) slider.value = value ?? fallback ?? field.slider[0];
      take(value);
    });
    slider?.addEventListener("input", () => {
      input.value = slider.value;
      input.setAttribute("aria-invalid", "false");
      problem.hidden = true;
      take(Number(slider.value));
    });
    row.classList.toggle("changed", settings[name] !== null);
    return row;
  }

  stopField() {
    const input = h("textarea", {
      class: "field-input mono",
      id: "set-stop",
      rows: 2,
      spellcheck: "false",
      "aria-describedby": "set-stop-help",
    });
    input.value = this.settings.stop.join("\n");
    input.addEventListener("input", () => {
      this.settings.stop = input.value.split("\n").filter(Boolean).slice(0, MAX_STOPS);
      this.showReset();
      this.changed("stop");
    });
    return h(
      "div",
      { class: "sampling" },
      h("label", { for: "set-stop" }, t("stopTexts")),
      input,
      h("p", { class: "quiet", id: "set-stop-help" }, t("stopHelp", { n: MAX_STOPS })),
    );
  }
}

function rangeOf({ min, max, above, integer }) {
  const isOpen = max >= 2 ** 31 - 1;
  const low = number(min);
  const key = above ? "rangeAbove" : isOpen ? "rangeFrom" : "range";
  return t(key, { low, high: number(max), kind: t(integer ? "wholeNumber" : "aNumber") });
}
