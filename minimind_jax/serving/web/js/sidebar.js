// The list of conversations: open, search, rename, delete with undo, export, import.
import { h, iconButton } from "./dom.js";
import { t } from "./i18n.js";

export class Sidebar {
  // actions: open(id), rename(id, title), remove(id), exportOne(id, form), importFile(file), exportAll(), startNew().
  constructor({ session, actions }) {
    Object.assign(this, { session, actions, heads: [], renaming: null, menu: null });
    this.list = document.getElementById("conversations");
    this.search = document.getElementById("search");
    this.nothing = document.getElementById("no-conversations");
    this.scrim = document.getElementById("scrim");
    this.app = document.getElementById("app");
    const on = (id, action) => document.getElementById(id).addEventListener("click", action);
    on("new-chat", () => actions.startNew());
    on("toggle-sidebar", () => this.toggle());
    on("close-sidebar", () => this.toggle(false));
    on("export-all", () => actions.exportAll());
    this.scrim.addEventListener("click", () => this.toggle(false));
    const file = document.getElementById("import-file");
    on("import", () => file.click());
    file.addEventListener("change", async () => {
      if (file.files.length) await actions.importFile(file.files[0]);
      file.value = "";
    });
    this.search.addEventListener("input", () => this.update());
    this.search.addEventListener("keydown", (event) => this.searchKey(event));
    document.addEventListener("click", (event) => {
      if (this.menu && !event.target.closest(".row-menu, [data-menu]")) this.openMenu(null);
    });
  }

  get isDrawer() {
    return matchMedia("(max-width: 860px)").matches;
  }

  // Phones: a drawer over the page. Else: a column that can be folded away.
  toggle(isOpen) {
    const name = this.isDrawer ? "drawer-open" : "sidebar-closed";
    const wanted = this.isDrawer ? isOpen : isOpen === undefined ? undefined : !isOpen;
    this.app.classList.toggle(name, wanted);
    this.scrim.hidden = !(this.isDrawer && this.isOpen);
    if (this.isDrawer && this.isOpen) document.getElementById("close-sidebar").focus();
    else if (this.isDrawer) document.getElementById("toggle-sidebar").focus();
    document.getElementById("toggle-sidebar").setAttribute("aria-expanded", String(this.isOpen));
  }

  get isOpen() {
    return this.isDrawer
      ? this.app.classList.contains("drawer-open")
      : !this.app.classList.contains("sidebar-closed");
  }

  focusSearch() {
    if (!this.isOpen) this.toggle(true);
    this.search.focus();
    this.search.select();
  }

  update(heads = this.heads) {
    this.heads = heads;
    const wanted = this.search.value.trim().toLowerCase();
    const found = heads.filter(({ title }) => title.toLowerCase().includes(wanted));
    this.nothing.hidden = heads.length > 0;
    this.list.replaceChildren(...found.map((head) => this.row(head)));
  }

  row(head) {
    const isCurrent = head.id === this.session.current.id;
    const title = head.title || t("untitled");
    if (this.renaming === head.id) return h("li", { class: "row" }, this.renameInput(head));
    const isMenuOpen = this.menu === head.id;
    return h(
      "li",
      { class: `row${isCurrent ? " current" : ""}`, "data-id": head.id },
      h(
        "button",
        {
          type: "button",
          class: "row-title",
          "aria-current": isCurrent ? "true" : null,
          title,
          onclick: () => this.actions.open(head.id),
        },
        this.session.running.has(head.id) && h("span", { class: "dot", role: "img", "aria-label": t("writing") }),
        title,
      ),
      iconButton("more", t("moreOf", { title }), {
        class: "small",
        "data-menu": "",
        "aria-expanded": String(isMenuOpen),
        onclick: () => this.openMenu(isMenuOpen ? null : head.id),
      }),
      isMenuOpen && this.rowMenu(head),
    );
  }

  rowMenu(head) {
    const item = (key, action) =>
      h(
        "button",
        {
          type: "button",
          class: "menu-item",
          onclick: () => {
            this.openMenu(null);
            action();
          },
        },
        t(key),
      );
    const menu = h(
      "div",
      { class: "row-menu", role: "group" },
      item("rename", () => this.rename(head.id)),
      item("exportJson", () => this.actions.exportOne(head.id, "json")),
      item("exportSft", () => this.actions.exportOne(head.id, "sft")),
      item("delete", () => this.actions.remove(head.id)),
    );
    menu.setAttribute("aria-label", t("moreOf", { title: head.title || t("untitled") }));
    return menu;
  }

  openMenu(id) {
    const before = this.menu;
    this.menu = id;
    this.update();
    if (id) this.list.querySelector(".row-menu button")?.focus();
    else if (before) this.rowOf(before)?.querySelector("[data-menu]")?.focus();
  }

  rowOf(id) {
    return [...this.list.children].find((row) => row.dataset.id === id);
  }

  rename(id) {
    this.renaming = id;
    this.update();
    const input = this.list.querySelector(".rename");
    input.focus();
    input.select();
  }

  renameInput(head) {
    const input = h("input", {
      class: "field-input rename",
      value: head.title,
      maxlength: 200,
      "aria-label": t("newName"),
    });
    const finish = (isKept) => {
      if (this.renaming !== head.id) return;
      this.renaming = null;
      const title = input.value.trim();
      if (isKept && title && title !== head.title) {
        head.title = title;
        this.actions.rename(head.id, title);
      }
      this.update();
      this.rowOf(head.id)?.querySelector(".row-title")?.focus();
    };
    input.addEventListener("blur", () => finish(true));
    input.addEventListener("keydown", (event) => {
      if (event.isComposing || event.keyCode === 229) return;
      if (event.key === "Enter") finish(true);
      if (event.key === "Escape") {
        event.stopPropagation();
        finish(false);
      }
    });
    return input;
  }

  searchKey(event) {
    if (event.key === "Enter" && !event.isComposing) this.list.querySelector(".row-title")?.click();
    if (event.key === "ArrowDown") {
      event.preventDefault();
      this.list.querySelector(".row-title")?.focus();
    }
  }
}
