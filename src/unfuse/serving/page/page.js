"use strict";
(() => {
  const STAGES = ["queue", "load", "preprocess", "encode", "prefill", "decode"];
  const SCENE_STAGES = ["load", "preprocess", "encode"];
  const TAKEN = {
    events: "Event files, or event frames as pictures.",
    video: "Videos, pictures or event files.",
    image: "Pictures, videos or event files.",
  };
  const IDEAS = ["What moves?", "How many objects are there?", "Does the camera move?"];
  const at = (id) => document.getElementById(id);
  const made = (name, attributes = {}, ...children) => {
    const element = Object.assign(document.createElement(name), attributes);
    element.append(...children);
    return element;
  };
  let token = "";
  let about = null;
  let scene = null;
  let asked = null;
  let asking = null;
  let taking = 0;
  let pictures = [];
  const bars = [];

  /* Beside what went wrong, where it is seen on a narrow screen too. */
  const say = (text, place = "problem") => {
    for (const each of ["problem", "upload-problem"]) at(each).textContent = each === place ? text : "";
  };

  async function ask(path, options = {}) {
    const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
    let reply;
    try {
      reply = await fetch(path, { ...options, headers, cache: "no-store" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("The server cannot be reached.");
    }
    if (reply.ok) return reply;
    const body = await reply.json().catch(() => null);
    if (reply.status === 401) {
      at("locked").hidden = false;
      at("token").focus();
    }
    throw new Error(body?.error?.message ?? `The server answered ${reply.status}.`);
  }

  async function start() {
    try {
      about = await (await ask("/v1/unfuse")).json();
    } catch (error) {
      say(error.message);
      return;
    }
    /* Whatever stands there by now was said to somebody who was faster than the server. */
    at("locked").hidden = true;
    at("model").textContent =
      `${about.model} (${about.family}) on ${about.device}, ${about.dtype}, engine ${about.engine}`;
    at("notes").hidden = !about.notes.length;
    at("notes").replaceChildren(...about.notes.map((note) => made("li", { textContent: note })));
    at("demo").replaceChildren(...about.demos.map((name) => made("option", { value: name, textContent: name })));
    at("demos").hidden = !about.demos.length;
    at("drop-help").prepend(`${TAKEN[about.takes]} `);
    at("max-tokens").value = about.max_new_tokens;
    document.documentElement.dataset.state = "ready";
  }

  /* A bar of stages: its length is its time against the longest on the page, its parts are the stages. */
  function bar(names) {
    const line = made("div", { className: "bar" });
    line.setAttribute("aria-hidden", "true");
    const times = made("dl", { className: "times" });
    const parts = Object.fromEntries(names.map((name) => [name, made("i", { className: name })]));
    const values = Object.fromEntries(names.map((name) => [name, made("dd")]));
    line.append(...names.map((name) => parts[name]));
    times.append(...names.map((name) => made(
      "div", {}, made("dt", { className: name, textContent: name }), values[name])));
    const own = { element: made("div", {}, line, times), ms: {}, total: 0 };
    own.scale = (longest) => {
      for (const name of names) parts[name].style.width = `${longest ? (100 * (own.ms[name] ?? 0)) / longest : 0}%`;
    };
    own.show = (ms, reused = false, sofar = false) => {
      own.ms = ms;
      own.total = names.reduce((sum, name) => sum + (ms[name] ?? 0), 0);
      for (const name of names) {
        const known = ms[name] !== undefined;
        values[name].textContent = !known ? "\u2013" : reused && SCENE_STAGES.includes(name) && !ms[name]
          ? "0 (reused)" : `${shown(ms[name])} ms${sofar ? " so far" : ""}`;
        parts[name].title = known ? `${name}: ${shown(ms[name])} ms` : name;
      }
      const longest = Math.max(...bars.map((each) => each.total));
      for (const each of bars) each.scale(longest);
    };
    bars.push(own);
    return own;
  }
  const mebibytes = (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;
  const shown = (ms) => (ms >= 100 ? ms.toFixed(0) : ms >= 10 ? ms.toFixed(1) : ms.toFixed(2));
  const stages = (given) => Object.fromEntries(
    Object.entries(given).map(([name, ms]) => [name.replace(/_ms$/, ""), ms]));

  async function upload(files) {
    if (!files.length) return;
    const size = [...files].reduce((sum, file) => sum + file.size, 0);
    if (about && size > about.max_upload_bytes) {
      say(`That is ${mebibytes(size)}; this server takes ${mebibytes(about.max_upload_bytes)}.`, "upload-problem");
      return;
    }
    const form = new FormData();
    for (const file of files) form.append("file", file);
    await take(files[0].name, () => ask("/v1/files", { method: "POST", body: form }));
  }

  async function take(name, request) {
    const mine = ++taking;
    say("");
    at("upload-state").textContent = `Encoding ${name} \u2026`;
    try {
      const found = await (await request()).json();
      const blobs = await Promise.all(
        found.unfuse.frames.map(async (path) => (await ask(path)).blob()));
      if (mine === taking) show(found, blobs);
    } catch (error) {
      if (mine !== taking) return;
      say(error.message.replace(/^upload\b/, () => name), "upload-problem");
      at("upload-state").textContent = "";
    }
  }

  function show(found, blobs) {
    scene = found;
    for (const url of pictures) URL.revokeObjectURL(url);
    pictures = blobs.map((blob) => URL.createObjectURL(blob));
    const buttons = pictures.map((url, index) => {
      const button = made("button", { type: "button" }, made("img", { src: url, alt: "" }));
      button.setAttribute("aria-label", `Frame ${index + 1} of ${pictures.length}`);
      button.addEventListener("click", () => choose(index));
      return button;
    });
    at("strip").replaceChildren(...buttons);
    const { unfuse: facts } = found;
    const reused = facts.features === "reused";
    const events = facts.num_events === null ? "" : `${facts.num_events.toLocaleString("en")} events, `;
    at("facts").replaceChildren(
      made("p", { textContent:
        `${found.filename}: ${events}${facts.num_frames} frame${facts.num_frames === 1 ? "" : "s"}, ${facts.media_tokens} positions of the prompt` }),
      ...facts.notes.map((note) => made("p", { textContent: note })));
    for (const old of bars.splice(0)) if (at("answers").contains(old.element)) bars.push(old);
    const own = bar(SCENE_STAGES);
    at("scene-stages").replaceChildren(own.element);
    own.show(stages(facts.stages), reused);
    at("scene").hidden = false;
    choose(0);
    at("upload-state").textContent = reused ? "Known already: nothing was encoded." :
      facts.features === "store" ? "Found in the store: nothing was encoded." : "Encoded once.";
    at("question").focus();
  }

  function choose(index) {
    at("frame").src = pictures[index] ?? "";
    at("frame").alt = `Frame ${index + 1} of ${pictures.length} of ${scene.filename}`;
    [...at("strip").children].forEach((button, i) => button.setAttribute("aria-pressed", String(i === index)));
  }

  function ready() {
    if (!scene) {
      say("Choose a recording first.");
      at("file").focus();
    }
    return scene && !asking;
  }

  async function question(text) {
    say("");
    asking = new AbortController();
    at("send").hidden = true;
    at("stop").hidden = false;
    const answer = made("p", { className: "answer writing" });
    const own = bar(STAGES);
    const item = made("li", {}, made("p", { className: "asked", textContent: text }), answer, own.element);
    if (asked !== scene.id) item.prepend(made("p", { className: "quiet", textContent: `About ${scene.filename}` }));
    asked = scene.id;
    at("answers").append(item);
    item.scrollIntoView({ block: "nearest" });
    const begun = performance.now();
    let first = 0;
    const live = setInterval(() => {
      const now = performance.now();
      own.show(first ? { prefill: first - begun, decode: now - first } : { prefill: now - begun }, false, true);
    }, 100);
    try {
      const content = [{ type: "file", file: { file_id: scene.id } }, { type: "text", text }];
      const reply = await ask("/v1/chat/completions", {
        method: "POST",
        signal: asking.signal,
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({
          model: about.model, stream: true, messages: [{ role: "user", content }],
          max_tokens: at("max-tokens").valueAsNumber, temperature: at("temperature").valueAsNumber,
        }),
      });
      let ended = false;
      for await (const chunk of events(reply)) {
        if (chunk.error) throw new Error(chunk.error.message);
        first ||= performance.now();
        const [choice] = chunk.choices;
        if (choice?.delta.content) answer.textContent += choice.delta.content;
        if (choice?.finish_reason) {
          ended = true;
          clearInterval(live);
          own.show(stages(chunk.unfuse.stages), chunk.unfuse.features === "reused");
          const cut = choice.finish_reason === "length" ? ["cut at the tokens allowed"] : [];
          for (const note of [...cut, ...chunk.unfuse.notes]) {
            item.append(made("p", { className: "quiet", textContent: note }));
          }
          at("said").textContent = `Answer: ${answer.textContent}`;
        }
      }
      if (!ended) throw new Error("The answer broke off.");
    } catch (error) {
      item.append(made("p", { className: "quiet", textContent: error.name === "AbortError" ? "stopped" : "failed" }));
      if (error.name !== "AbortError") {
        say(error.message);
        at("question").value ||= text;
      }
    } finally {
      clearInterval(live);
      answer.classList.remove("writing");
      asking = null;
      at("send").hidden = false;
      at("stop").hidden = true;
      at("question").focus();
    }
  }

  async function* events(reply) {
    const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read().catch((error) => {
        throw error.name === "AbortError" ? error : new Error("The answer broke off.");
      });
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const data = part.replace(/^data: /, "");
        if (data === "[DONE]") return;
        yield JSON.parse(data);
      }
    }
  }

  at("locked").addEventListener("submit", (event) => {
    event.preventDefault();
    token = at("token").value.trim();
    at("token").value = "";
    say("");
    start();
  });
  at("file").addEventListener("change", (event) => {
    upload(event.target.files);
    event.target.value = "";
  });
  at("use-demo").addEventListener("click", () => {
    const name = at("demo").value;
    take(name, () => ask(`/v1/unfuse/demo/${encodeURIComponent(name)}`, { method: "POST" }));
  });
  at("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!ready()) return;
    const text = at("question").value.trim() || at("question").placeholder;
    at("question").value = "";
    question(text);
  });
  at("stop").addEventListener("click", () => asking?.abort());
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") asking?.abort(); });
  at("ideas").append(...IDEAS.map((text) => {
    const button = made("button", { type: "button", textContent: text });
    button.addEventListener("click", () => { if (ready()) question(text); });
    return button;
  }));
  let depth = 0;
  for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      depth = kind === "drop" ? 0 : depth + (kind === "dragenter") - (kind === "dragleave");
      at("drop").classList.toggle("over", depth > 0);
      if (kind === "drop") upload(event.dataTransfer.files);
    });
  }
  start();
})();
