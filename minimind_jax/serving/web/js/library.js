// Everything about the kept conversations as a whole: the list, delete and undo, files in and out.
import { banner, download, toast } from "./dialogs.js";
import { asNew, fileName, fromJson, toJson, toSftLine } from "./export.js";
import { number, t } from "./i18n.js";
import { DamagedError, isFull, listHeads, load, markChanged, remove, restore, save } from "./storage.js";

export class Library {
  // tools() -> signatures; showHeads(heads) shows the list; leave() shows a new conversation.
  constructor({ session, tools, showHeads, leave }) {
    Object.assign(this, { session, tools, showHeads, leave });
  }

  async refresh() {
    try {
      this.showHeads(await listHeads());
    } catch (error) {
      this.failed(error);
    }
  }

  failed(error) {
    const text = isFull(error) ? t("storageFull") : t("storageFailed", { message: error.message });
    banner("storage", text, { isError: true, mayClose: true });
  }

  // Opens a conversation. Of a damaged one the user is told, and may save what is there.
  async open(id) {
    try {
      if (await this.session.open(id)) return true;
      toast(t("noSuchConversation"));
    } catch (error) {
      if (!(error instanceof DamagedError)) {
        this.failed(error);
        return false;
      }
      const run = () => download("damaged.json", JSON.stringify(error.raw, null, 1), "application/json");
      toast(t("damaged", { message: error.message }), { label: t("saveDamaged"), run });
    }
    return false;
  }

  async remove(id) {
    const { session } = this;
    const running = session.running.get(id);
    running?.abort.abort();
    await session.saver.flush();
    try {
      const kept = await remove(id);
      if (session.current.id === id) this.leave();
      await this.refresh();
      const run = async () => {
        await restore(kept);
        await this.refresh();
        await this.open(id);
      };
      toast(t("deleted"), { label: t("undo"), run });
    } catch (error) {
      this.failed(error);
    }
  }

  async rename(id, title) {
    const conversation = await this.get(id);
    if (conversation) this.session.rename(conversation, title);
  }

  // The conversation itself where it is shown or running, else what is stored.
  async get(id) {
    const { session } = this;
    if (session.current.id === id) return session.current;
    return session.running.get(id)?.conversation ?? (await this.readable(id));
  }

  async readable(id) {
    try {
      return await load(id);
    } catch (error) {
      toast(t("damaged", { message: error.message }));
      return null;
    }
  }

  async exportOne(id, form) {
    const conversation = await this.get(id);
    if (!conversation) return;
    if (form === "json") {
      download(fileName(conversation, "json"), toJson([conversation]), "application/json");
      return;
    }
    const line = toSftLine(conversation, this.tools());
    if (line === null) toast(t("nothingToLearn"));
    else download(fileName(conversation, "jsonl"), line, "application/jsonl");
  }

  async exportAll() {
    await this.session.saver.flush();
    const found = [];
    for (const { id } of await listHeads()) {
      const conversation = await this.readable(id);
      if (conversation) found.push(conversation);
    }
    if (found.length) download("conversations.json", toJson(found), "application/json");
    else toast(t("noConversations"));
  }

  async importFile(file) {
    let conversations;
    try {
      conversations = fromJson(await file.text());
    } catch (error) {
      toast(t("badFile", { name: file.name, message: error.message }));
      return;
    }
    try {
      const present = new Set((await listHeads()).map(({ id }) => id));
      let last = null;
      for (const conversation of conversations) {
        last = present.has(conversation.id) ? asNew(conversation) : conversation;
        present.add(last.id);
        last.messages.forEach(markChanged);
        await save(last);
      }
      await this.refresh();
      toast(t("imported", { n: number(conversations.length) }));
      if (last) await this.open(last.id);
    } catch (error) {
      this.failed(error);
    }
  }
}
