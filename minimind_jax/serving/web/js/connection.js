// Whether the server is there. Once it is gone, asks again and again, ever more rarely, until it is back.
import { isHealthy } from "./api.js";

const DELAYS = [1, 2, 4, 8, 15]; // seconds between tries; the last one repeats

export class Connection {
  // onGone(seconds until the next try), onBack()
  constructor({ onGone, onBack }) {
    Object.assign(this, { onGone, onBack, tries: 0, left: 0, timer: null });
    addEventListener("online", () => this.tryNow());
    document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && this.tryNow());
  }

  get isGone() {
    return this.timer !== null;
  }

  lost() {
    if (this.isGone) return;
    this.tries = 0;
    this.wait();
  }

  wait() {
    this.left = DELAYS[Math.min(this.tries, DELAYS.length - 1)];
    this.tries += 1;
    this.onGone(this.left);
    this.timer = setInterval(() => {
      this.left -= 1;
      if (this.left > 0) this.onGone(this.left);
      else this.tryNow();
    }, 1000);
  }

  async tryNow() {
    if (!this.isGone || this.isTrying) return;
    this.isTrying = true;
    clearInterval(this.timer);
    const isBack = await isHealthy();
    this.isTrying = false;
    if (!isBack) {
      this.wait();
      return;
    }
    this.timer = null;
    this.onBack();
  }
}
