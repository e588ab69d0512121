#!/usr/bin/env node
// Perfetto's trace processor, as its `perfetto` Python package starts it: `-D --http-port N`.
//
// The package downloads a native trace_processor_shell at run time, which a machine without a way out cannot. This
// runs the build of the same code that ui.perfetto.dev runs in a browser (WebAssembly), from the folder
// PERFETTO_WASM, and hands each HTTP request to it as the remote procedure call that it stands for.
"use strict";

const fs = require("node:fs");
const http = require("node:http");
const path = require("node:path");
const vm = require("node:vm");

const folder = process.env.PERFETTO_WASM;
const port = Number(process.argv[process.argv.indexOf("--http-port") + 1]);
const MOST_BYTES = 16 * 2 ** 20; // of one request; the engine refuses more than 64 MiB

// Of perfetto/protos/trace_processor/trace_processor.proto: method, field of its arguments, field of its result.
const CALLS = {
  "/parse": { method: 1, sends: 101, gives: 201 },
  "/notify_eof": { method: 2, gives: 211 },
  "/query": { method: 3, sends: 103, gives: 203 },
  "/status": { method: 8, gives: 208 },
};

function varint(value) {
  const bytes = [];
  for (; value > 0x7f; value = Math.floor(value / 128)) bytes.push((value % 128) + 128);
  return Buffer.from([...bytes, value]);
}

function bytesField(number, bytes) {
  return Buffer.concat([varint(number * 8 + 2), varint(bytes.length), bytes]);
}

function* fieldsOf(message) {
  let at = 0;
  const next = () => {
    let value = 0;
    for (let scale = 1; ; scale *= 128) {
      const byte = message[at++];
      value += (byte % 128) * scale;
      if (byte < 128) return value;
    }
  };
  while (at < message.length) {
    const tag = next();
    const number = Math.floor(tag / 8);
    if (tag % 8 === 0) yield [number, next()];
    else if (tag % 8 === 2) {
      const length = next();
      yield [number, message.subarray(at, (at += length))];
    } else throw new Error(`field ${number} of a reply is of wire type ${tag % 8}`);
  }
}

// What the engine finds instead of a browser's worker.
let replies = [];
const channel = { onmessage: null, postMessage: (bytes) => replies.push(Buffer.from(bytes)) };
globalThis.WorkerGlobalScope = class {};
globalThis.self = { location: { href: "file:///" } };
globalThis.XMLHttpRequest = class {
  open() {}
  send() {
    this.response = fs.readFileSync(path.join(folder, "trace_processor.wasm"));
  }
};
const Module = WebAssembly.Module;
WebAssembly.Module = class extends Module {
  constructor(bytes, ...rest) {
    // The engine asks whether 64-bit memories work by compiling one; its 32-bit build is the one at hand.
    if (bytes[8] === 5 && bytes[11] === 4) throw new Error("no 64-bit memories");
    super(bytes, ...rest);
  }
};

vm.runInThisContext(fs.readFileSync(path.join(folder, "engine_bundle.node.js"), "utf8"));
globalThis.self.onmessage({ data: channel });

function call({ method, sends, gives }, body) {
  replies = [];
  const message = Buffer.concat([varint(2 * 8), varint(method), ...(sends ? [bytesField(sends, body)] : [])]);
  channel.onmessage({ data: new Uint8Array(bytesField(1, message)) });
  const results = [];
  for (const [, reply] of fieldsOf(Buffer.concat(replies))) {
    for (const [number, value] of fieldsOf(reply)) {
      if (number === 5) throw new Error(String(value)); // fatal_error
      if (number === gives) results.push(value);
    }
  }
  return Buffer.concat(results); // messages one after the other are one merged message
}

function answer(request, response, body) {
  const asked = CALLS[request.url];
  if (!asked) return response.writeHead(404).end();
  let result = Buffer.alloc(0);
  do {
    result = call(asked, body.subarray(0, MOST_BYTES));
    body = body.subarray(MOST_BYTES);
  } while (body.length);
  return response.end(result);
}

const server = http.createServer((request, response) => {
  const chunks = [];
  request.on("data", (chunk) => chunks.push(chunk));
  request.on("end", () => answer(request, response, Buffer.concat(chunks)));
});
setTimeout(() => server.listen(port, "localhost"), 0); // the engine is ready once its promises have been kept
