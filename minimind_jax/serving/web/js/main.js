// The chat page: makes the parts and connects them.
import { ApiError, apiKey, getPage, setApiKey } from "./api.js";
import { themeButton } from "./appearance.js";
import { ChatView } from "./chat_view.js";
import { Composer } from "./composer.js";
import { Connection } from "./connection.js";
import { announce, askKey, banner, showHelp } from "./dialogs.js";
import { icon } from "./dom.js";
import { emptyView } from "./empty_view.js";
import { language, setLanguage, t, translate } from "./i18n.js";
import { listenForKeys } from "./keyboard.js";
import { Library } from "./library.js";
import { chosenModels, showPicker } from "./model_picker.js";
import { Session } from "./session.js";
import { loadSettings, saveSettings } from "./settings.js";
import { SettingsPanel } from "./settings_panel.js";
import { Sidebar } from "./sidebar.js";
import { onChangeElsewhere } from "./storage.js";
import { path, titleOf } from "./tree.js";

const by = (id) => document.getElementById(id);
const NOTHING = { models: [], defaults: {}, tools: [], suggestions: {}, runs: false, version: "" };
const NEAR = 80; // pixels from the end that count as the end

let page = NOTHING; // what /api/page says
let followsEnd = true;
let lastTop = 0; // pixels: where the view was scrolled to
let hasBegun = false; // the address has been read: from now on it follows what is shown
const settings = loadSettings();
const models = () => chosenModels(page, settings);

const session = new Session({
  settings,
  models,
  tools: () => page.tools.filter((tool) => settings.tools.includes(tool.function.name)),
  events: {
    shape: (conversation) => conversation === session.current && showConversation(),
    grew: (message) => chat.grew(message),
    ended: (message) => ended(message),
    run: (conversation) => ran(conversation),
    wait: (left) => composer.showWait(left),
    failed: (message) => failed(message),
    saved: () => {
      banner("storage", null);
      library.refresh();
    },
    saveFailed: (error) => library.failed(error),
    confirm: (message, call, signal) => {
      announce(t("toolAsks", { name: call.name }));
      return chat.confirm(message, call, signal);
    },
  },
});

const chat = new ChatView({
  root: by("turns"),
  session,
  settings,
  severalModels: () => page.models.length > 1,
  onChanged: () => scrollIfFollowing(),
});
const composer = new Composer(by("composer"), {
  session,
  settings,
  page: () => page,
  models,
  actions: { send, stop: () => session.stop(), toggle, editLast },
});
const library = new Library({
  session,
  tools: () => page.tools,
  showHeads: (heads) => sidebar.update(heads),
  leave: startNew,
});
const sidebar = new Sidebar({
  session,
  actions: {
    startNew,
    open: async (id) => {
      if (await library.open(id)) followToEnd();
      if (sidebar.isDrawer && sidebar.isOpen) sidebar.toggle(false);
    },
    rename: (id, title) => library.rename(id, title),
    remove: (id) => library.remove(id),
    exportOne: (id, form) => library.exportOne(id, form),
    exportAll: () => library.exportAll(),
    importFile: (file) => library.importFile(file),
  },
});
const panel = new SettingsPanel({
  settings,
  page: () => page,
  session,
  changed,
  systemChanged: (text) => {
    settings.system = text;
    session.setSystem(text);
    saveSettings(settings);
  },
  close: () => toggleSettings(false),
});
const connection = new Connection({
  onGone: (left) => {
    const action = { label: t("tryNow"), run: () => connection.tryNow() };
    banner("gone", t("serverGone"), { isError: true, detail: t("tryingAgain", { n: left }), action });
  },
  onBack: async () => {
    banner("gone", null);
    announce(t("serverBack"));
    await loadPage();
  },
});
const showTheme = themeButton(by("theme"));

function showConversation() {
  const { current } = session;
  const isEmpty = current.messages.length === 0;
  by("title").hidden = isEmpty;
  by("title").textContent = titleOf(current);
  by("empty").hidden = !isEmpty;
  by("empty").replaceChildren(...(isEmpty && page.models.length ? [emptyView(page, models(), send)] : []));
  chat.update();
  composer.update();
  document.title = isEmpty ? "minimind-jax" : `${titleOf(current)} · minimind-jax`;
  const hash = isEmpty ? "" : `#${current.id}`;
  if (hasBegun && location.hash !== hash) history.pushState(null, "", hash || location.pathname);
}

// Texts and everything that depends on them, on the models, on the settings.
function showAll() {
  translate(document.body);
  by("language").textContent = language() === "zh" ? "EN" : "中";
  showTheme();
  showPicker(by("models"), page, settings, () => changed("model"));
  by("runs-link").hidden = !page.runs;
  chat.shown.clear();
  showConversation();
  sidebar.update();
  panel.update();
}

function changed(name) {
  saveSettings(settings);
  if (name === "compare" || name === "model") showPicker(by("models"), page, settings, () => changed("model"));
  if (name === "compare" || name === "model" || name === "probabilities") showConversation();
  composer.update();
}

function toggle(name) {
  if (name === "tools") {
    settings.tools = settings.tools.length ? [] : page.tools.map((tool) => tool.function.name);
    panel.update();
  } else {
    settings[name] = !settings[name];
  }
  changed(name);
}

function send(text) {
  followToEnd();
  session.send(text, path(session.current).at(-1));
  composer.restoreDraft();
  composer.focus();
}

function startNew() {
  session.startNew();
  composer.restoreDraft();
  if (sidebar.isDrawer && sidebar.isOpen) sidebar.toggle(false);
  composer.focus();
}

function editLast() {
  const question = path(session.current).findLast(({ role }) => role === "user");
  if (question && !session.isRunning()) chat.edit(question.id);
}

function ran(conversation) {
  sidebar.update();
  if (conversation !== session.current) return;
  composer.update();
  panel.update();
  if (session.isRunning()) announce(t("writing"));
}

function ended(message) {
  chat.grew(message);
  if (message.status === "running" || message.role !== "assistant") return;
  const text = [...message.content].slice(0, 300).join("");
  announce(message.status === "failed" ? t("answerFailed") : t("answerDone", { text }));
}

function failed(message) {
  const { code } = message.error;
  if (code === "gone" || code === "cut" || code === "shutting_down") connection.lost();
  if (code === "invalid_api_key") askForKey();
}

// Asks for the key until the server takes it.
async function askForKey() {
  if (document.querySelector("dialog[open]")) return;
  setApiKey(await askKey(apiKey() !== ""));
  await loadPage();
}

async function loadPage() {
  try {
    page = await getPage();
  } catch (error) {
    if (error.code === "invalid_api_key") return askForKey();
    if (!(error instanceof ApiError)) throw error;
    if (error.code === "gone") connection.lost();
    else banner("page", t("errorOther", { message: error.message }), { isError: true });
    return;
  }
  banner("page", null);
  settings.tools = settings.tools.filter((name) => page.tools.some((tool) => tool.function.name === name));
  showAll();
}

function toggleSettings(isOpen = by("settings").hidden) {
  by("settings").hidden = !isOpen;
  by("toggle-settings").setAttribute("aria-expanded", String(isOpen));
  panel.update();
  by(isOpen ? "close-settings" : "toggle-settings").focus();
}

function escape() {
  if (session.isRunning()) session.stop();
  else if (sidebar.menu) sidebar.openMenu(null);
  else if (!by("settings").hidden) toggleSettings(false);
  else if (sidebar.isDrawer && sidebar.isOpen) sidebar.toggle(false);
}

// The view follows an answer as long as its end is in sight.
function scrollIfFollowing() {
  const main = by("main");
  if (followsEnd) main.scrollTop = main.scrollHeight;
  showToEnd();
}

const isNearEnd = ({ scrollHeight, scrollTop, clientHeight }) => scrollHeight - scrollTop - clientHeight < NEAR;

// Only who scrolls up leaves the end: it also moves away by itself, as the answer grows.
function scrolled() {
  const main = by("main");
  const isUp = main.scrollTop < lastTop;
  if (isUp && !isNearEnd(main)) followsEnd = false;
  else if (!isUp && isNearEnd(main)) followsEnd = true;
  lastTop = main.scrollTop;
  showToEnd();
}

// A wheel that is turned up counts at once: an answer that grows meanwhile would take the view back to its end.
function wheeled({ deltaY }) {
  if (deltaY < 0 && by("main").scrollTop > 0) followsEnd = false;
}

function showToEnd() {
  const main = by("main");
  by("to-end").hidden = followsEnd || isNearEnd(main);
}

function followToEnd() {
  followsEnd = true;
  scrollIfFollowing();
}

async function route() {
  const id = location.hash.slice(1);
  hasBegun = true;
  if (id === session.current.id) return;
  if (!id) session.startNew();
  else if (!(await library.open(id))) history.replaceState(null, "", location.pathname);
  composer.restoreDraft();
  followToEnd();
}

for (const button of document.querySelectorAll("[data-icon]")) button.prepend(icon(button.dataset.icon));
by("main").addEventListener("scroll", scrolled, { passive: true });
by("main").addEventListener("wheel", wheeled, { passive: true });
new ResizeObserver(scrollIfFollowing).observe(by("turns"));
by("to-end").addEventListener("click", followToEnd);
by("toggle-settings").addEventListener("click", () => toggleSettings());
by("help").addEventListener("click", showHelp);
by("language").addEventListener("click", () => {
  setLanguage(language() === "zh" ? "en" : "zh");
  showAll();
});
document.addEventListener("copied", () => announce(t("copied")));
listenForKeys({ search: () => sidebar.focusSearch(), startNew, help: showHelp, escape });
addEventListener("hashchange", route);
addEventListener("popstate", route);
addEventListener("pagehide", () => session.saver.flush());
document.addEventListener("visibilitychange", () => document.visibilityState === "hidden" && session.saver.flush());
onChangeElsewhere(async (id) => {
  await library.refresh();
  if (id === session.current.id && !session.isRunning() && !chat.editing) await session.open(id);
});

showAll();
await Promise.all([loadPage(), library.refresh()]);
await route();
composer.restoreDraft();
if (!sidebar.isDrawer && !document.querySelector("dialog[open]")) composer.focus();
