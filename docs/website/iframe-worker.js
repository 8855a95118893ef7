// Browsers start no worker in a page that was opened from the disk. The search of the site then runs in a hidden frame,
// which is given what the worker would have: addEventListener, postMessage and importScripts.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const script = new URL(url, location).href;
      const frame = document.createElement("iframe");
      frame.hidden = true;
      this.ready = new Promise(resolve => { window.__frameWorkerReady = resolve; });
      window.__frameWorkerAnswer = data => {
        const event = new MessageEvent("message", { data });
        if (this.onmessage) this.onmessage(event);
        this.dispatchEvent(event);
      };
      frame.srcdoc = `<script>
        window.postMessage = parent.__frameWorkerAnswer;
        window.importScripts = (...urls) => urls.reduce((before, url) => before.then(() => new Promise((done, failed) => {
          const script = document.createElement("script");
          Object.assign(script, { src: new URL(url, ${JSON.stringify(script)}).href, onload: done, onerror: failed });
          document.head.append(script);
        })), Promise.resolve());
      <\/script><script src="${script}"><\/script><script>parent.__frameWorkerReady(window);<\/script>`;
      document.body.append(frame);
    }
    postMessage(data) {
      this.ready.then(frame => frame.dispatchEvent(new frame.MessageEvent("message", { data })));
    }
    terminate() {}
  };
}
