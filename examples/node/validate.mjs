// Asks the license agent about a token or a feature, as docs/protocol.md says. Node 18 or later, standard library only.
//
//     node validate.mjs TOKEN [SOCKET]              TOKEN "-" reads the token from standard input
//     node validate.mjs require:FEATURE [SOCKET]    without a token: does a license of this machine allow FEATURE?
//
//     node validate.mjs count:METER[:ID] [SOCKET]   counts one use of METER; ID, 32 hex digits, names the use: repeat it with the same one
//
// Prints one line, its fields separated by tabs: "valid" or "invalid", the reason, expires_at ("-" if there is none),
// then the features. A count prints "counted" or "not counted", the reason, the license ("-" if there is none) and the ID. Exit status: 0 valid, 1 not valid, 2 wrong usage, 3 no answer, 4 error reply.

import { randomBytes } from "node:crypto";
import { readFileSync, statSync } from "node:fs";
import { connect } from "node:net";
import { dirname } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

const PROTOCOL_VERSION = 1;
const NONCE_BYTES = 16;
const MAX_TOKEN_CHARS = 16 * 1024;
const MAX_FRAME_BYTES = 64 * 1024;
const MAX_DEPTH = 16;
const DEADLINE_MS = 2000;
const FIRST_PAUSE_MS = 10;
const LONGEST_PAUSE_MS = 250;
const RETRIED_CODES = new Set([8, 11, 12, 15]); // RATE_LIMITED, SHUTTING_DOWN, TIMED_OUT, UNAVAILABLE
const REASONS = [
  "ok", "expired", "not_yet_valid", "malformed", "unknown_secret", "secret_invalidated",
  "bad_signature", "wrong_audience", "revoked", "degraded_expired",
  "revocations_stale",
];
const FLAGS = ["degraded", "clock_suspect", "reissue_due", "refreshed"];
const FEATURE_FLAGS = ["degraded", "clock_suspect"];
const REQUIRE = "require:"; // no token has a colon
const COUNT = /^count:([a-z0-9][a-z0-9._-]{0,47})(?::([0-9a-f]{32}))?$/;
const EXIT = { valid: 0, invalid: 1, usage: 2, noAnswer: 3, refused: 4 };

/** Ends the call with an exit status. */
class Failed extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}
/** Worth another attempt. */
class TryAgain extends Error {}

const invalidReply = (text) => new Failed(EXIT.refused, `the reply is invalid: ${text}`);

// MessagePack: as much of it as requests and replies use.

function encode(value) {
  if (value instanceof Map) {
    // A fixmap holds up to 15 entries; requests have 6 at most.
    return Buffer.concat([Buffer.of(0x80 | value.size), ...[...value].flat().map(encode)]);
  }
  if (value === null) return Buffer.of(0xc0);
  if (typeof value === "string") {
    const text = Buffer.from(value, "utf8");
    const head = Buffer.alloc(3, 0xda);
    head.writeUInt16BE(text.length, 1);
    return Buffer.concat([head, text]);
  }
  if (Buffer.isBuffer(value)) return Buffer.concat([Buffer.of(0xc4, value.length), value]);
  const number = Buffer.alloc(9, 0xcf);
  number.writeBigUInt64BE(BigInt(value), 1);
  return number;
}

class Decoder {
  constructor(data) {
    this.data = data;
    this.at = 0;
    this.text = new TextDecoder("utf-8", { fatal: true });
  }

  /** The one value in the data. */
  whole() {
    const value = this.value(0);
    if (this.at !== this.data.length) throw invalidReply("something follows the message");
    return value;
  }

  take(size) {
    if (this.at + size > this.data.length) throw invalidReply("it is cut short");
    this.at += size;
    return this.data.subarray(this.at - size, this.at);
  }

  unsigned(size) {
    return size === 8 ? Number(this.take(8).readBigUInt64BE()) : this.take(size).readUIntBE(0, size);
  }

  value(depth) {
    if (depth > MAX_DEPTH) throw invalidReply("it is nested too deeply");
    const first = this.unsigned(1);
    if (first < 0x80) return first;
    if (first < 0x90) return this.map(first & 0x0f, depth);
    if (first < 0xa0) return this.array(first & 0x0f, depth);
    if (first < 0xc0) return this.string(first & 0x1f);
    if (first >= 0xe0) return first - 256;
    switch (first) {
      case 0xc0: return null;
      case 0xc2: return false;
      case 0xc3: return true;
      case 0xc4: case 0xc5: case 0xc6: return this.take(this.unsigned(1 << (first - 0xc4)));
      case 0xca: return { float: this.take(4).readFloatBE() }; // never an integer here
      case 0xcb: return { float: this.take(8).readDoubleBE() };
      case 0xcc: case 0xcd: case 0xce: case 0xcf: return this.unsigned(1 << (first - 0xcc));
      case 0xd0: return this.take(1).readInt8();
      case 0xd1: return this.take(2).readInt16BE();
      case 0xd2: return this.take(4).readInt32BE();
      case 0xd3: return Number(this.take(8).readBigInt64BE());
      case 0xd9: case 0xda: case 0xdb: return this.string(this.unsigned(1 << (first - 0xd9)));
      case 0xdc: case 0xdd: return this.array(this.unsigned(first === 0xdc ? 2 : 4), depth);
      case 0xde: case 0xdf: return this.map(this.unsigned(first === 0xde ? 2 : 4), depth);
      default: throw invalidReply("it holds an extension type");
    }
  }

  string(size) {
    try {
      return this.text.decode(this.take(size));
    } catch (error) {
      throw error instanceof Failed ? error : invalidReply("a text is not UTF-8");
    }
  }

  array(count, depth) {
    const items = [];
    for (let i = 0; i < count; i++) items.push(this.value(depth + 1));
    return items;
  }

  map(count, depth) {
    const entries = new Map();
    for (let i = 0; i < count; i++) {
      const key = this.value(depth + 1);
      if (typeof key !== "string" || entries.has(key)) throw invalidReply("a key comes twice, or is not a text");
      entries.set(key, this.value(depth + 1));
    }
    return entries;
  }
}

// Who is at the other end. Node cannot read SO_PEERCRED, so this checks what it can: the directory of the socket must
// belong to root, the agent or ourselves, and nobody else may write to it. Then nobody else can have put a socket there.

function agentUid() {
  const line = readFileSync("/etc/passwd", "utf8").split("\n").find((entry) => entry.startsWith("license-agent:"));
  return line === undefined ? 0 : Number(line.split(":")[2]);
}

function checkDirectory(path) {
  const directory = dirname(path);
  const info = statSync(directory, { throwIfNoEntry: false });
  if (info === undefined) throw new TryAgain(`${directory} does not exist`);
  if (![0, process.geteuid(), agentUid()].includes(info.uid) || (info.mode & 0o022) !== 0) {
    throw new Failed(EXIT.noAnswer, `${directory} belongs to others, or others may write to it`);
  }
}

// One attempt

/** Sends one frame and resolves to the body of the frame that comes back. */
function exchange(path, frame, milliseconds) {
  return new Promise((resolve, reject) => {
    const socket = connect(path);
    let received = Buffer.alloc(0);
    const end = (settle, value) => {
      clearTimeout(timer);
      socket.destroy();
      settle(value);
    };
    const timer = setTimeout(() => end(reject, new TryAgain("no reply in time")), milliseconds);
    let trouble = "the agent closed the connection";
    // An agent that refuses us says so at once and closes. Node forgets what it has not read when a write then fails: one
    // round of the event loop between two immediates reads it first.
    socket.on("connect", () => setImmediate(() => setImmediate(() => socket.destroyed || socket.write(frame))));
    socket.on("error", (error) => (trouble = error.message));
    socket.on("close", () => end(reject, new TryAgain(trouble)));
    socket.on("data", (data) => {
      received = Buffer.concat([received, data]);
      if (received.length < 4) return;
      const length = received.readUInt32BE(0);
      if (length === 0 || length > MAX_FRAME_BYTES) end(reject, invalidReply(`it says that it has ${length} bytes`));
      else if (received.length >= 4 + length) end(resolve, received.subarray(4, 4 + length));
    });
  });
}

/** A reply to this request, and no error. */
function checkReply(reply, id, name, echoed) {
  if (!(reply instanceof Map)) throw invalidReply("it is not a map");
  const error = reply.get("error");
  if (error instanceof Map) {
    const text = `error ${error.get("code")}: ${error.get("text")}`;
    throw RETRIED_CODES.has(error.get("code")) ? new TryAgain(text) : new Failed(EXIT.refused, text);
  }
  const echo = reply.get(name);
  if (reply.get("v") !== PROTOCOL_VERSION || reply.get("id") !== id || !Buffer.isBuffer(echo) || !echo.equals(echoed)) {
    throw invalidReply("it answers another request");
  }
}

function readCount(reply) {
  const [counted, repeated, reason, license] = ["counted", "repeated", "reason", "license"].map((name) => reply.get(name));
  if (typeof counted !== "boolean" || typeof repeated !== "boolean" || typeof reason !== "string") throw invalidReply("a field is missing");
  if (counted !== (reason === "ok")) throw invalidReply("counted and reason");
  if (license !== null && typeof license !== "string") throw invalidReply("license");
  return { counted, reason, license };
}

function readVerdict(reply, feature) {
  const [valid, reason, expires, features] = ["valid", "reason", "expires_at", "features"].map((name) => reply.get(name));
  // A token gets one of the list. A machine's licenses may get others, which newer agents have: not valid.
  const isReason = feature === null ? REASONS.includes(reason) : typeof reason === "string";
  if (typeof valid !== "boolean" || !isReason || valid !== (reason === "ok")) throw invalidReply("valid and reason");
  if (!(feature === null ? FLAGS : FEATURE_FLAGS).every((name) => typeof reply.get(name) === "boolean")) throw invalidReply("a flag is missing");
  if (expires !== null && !Number.isSafeInteger(expires)) throw invalidReply("expires_at");
  if (!Array.isArray(features) || !features.every((name) => typeof name === "string")) throw invalidReply("features");
  if (feature !== null && valid && (!features.includes(feature) || typeof reply.get("license") !== "string")) {
    throw invalidReply("no license allows the feature");
  }
  return { valid, reason, expires, features };
}

async function attempt(path, id, question, milliseconds) {
  checkDirectory(path);
  // A nonce is a fresh one for each attempt: the agent takes none twice. The id of a count is the same in each, so that it counts once.
  const counts = question.op === "count_usage";
  const once = counts ? {} : { nonce: randomBytes(NONCE_BYTES) };
  const body = encode(new Map(Object.entries({ v: PROTOCOL_VERSION, id, ...question, ...once })));
  const header = Buffer.alloc(4);
  header.writeUInt32BE(body.length);
  const reply = await exchange(path, Buffer.concat([header, body]), milliseconds);
  const content = new Decoder(reply).whole();
  checkReply(content, id, counts ? "count_id" : "nonce", counts ? question.count_id : once.nonce);
  return counts ? readCount(content) : readVerdict(content, question.feature ?? null);
}

// All attempts

async function ask(path, question) {
  const ends = performance.now() + DEADLINE_MS;
  for (let id = 1, longest = FIRST_PAUSE_MS; ; id++, longest = Math.min(longest * 2, LONGEST_PAUSE_MS)) {
    try {
      return await attempt(path, id, question, ends - performance.now());
    } catch (error) {
      if (!(error instanceof TryAgain)) throw error;
      const pause = longest * (0.5 + Math.random() / 2);
      if (performance.now() + pause >= ends) throw new Failed(EXIT.noAnswer, error.message);
      await sleep(pause);
    }
  }
}

async function main([given, path = process.env.LICENSE_AGENT_SOCKET || "/run/license-agent/pos.sock"]) {
  if (given === undefined) throw new Failed(EXIT.usage, "usage: node validate.mjs TOKEN|-|require:FEATURE|count:METER[:ID] [SOCKET]");
  if (given.startsWith(REQUIRE)) {
    // `product` names the product that the license must be for; null is any.
    return show(await ask(path, { op: "require", feature: given.slice(REQUIRE.length), product: null }));
  }
  if (given.startsWith("count:")) {
    const [, meter, repeatedId] = COUNT.exec(given) ?? [];
    if (meter === undefined) throw new Failed(EXIT.usage, "write count:METER or count:METER:ID, with an ID of 32 hex digits");
    const countId = repeatedId === undefined ? randomBytes(NONCE_BYTES) : Buffer.from(repeatedId, "hex");
    const { counted, reason, license } = await ask(path, { op: "count_usage", meter, amount: 1, count_id: countId });
    process.stdout.write([counted ? "counted" : "not counted", reason, license ?? "-", countId.toString("hex")].join("\t") + "\n");
    return counted ? EXIT.valid : EXIT.invalid;
  }
  // A byte order mark and white space around the token do not belong to it.
  const token = (given === "-" ? readFileSync(0, "utf8") : given).replace(/^\ufeff?[ \t\r\n\v\f]*|[ \t\r\n\v\f]+$/g, "");
  if (!/^[\x01-\x7f]+$/.test(token) || token.length > MAX_TOKEN_CHARS) {
    if (given === "-") {
      process.stdout.write("invalid\tmalformed\t-\n"); // what a file holds is no wrong usage
      return EXIT.invalid;
    }
    throw new Failed(EXIT.usage, `a token has 1 to ${MAX_TOKEN_CHARS} ASCII characters`);
  }
  return show(await ask(path, { op: "validate_license", token }));
}

function show({ valid, reason, expires, features }) {
  process.stdout.write([valid ? "valid" : "invalid", reason, expires ?? "-", ...features].join("\t") + "\n");
  return valid ? EXIT.valid : EXIT.invalid;
}

main(process.argv.slice(2)).then(
  (status) => (process.exitCode = status),
  (error) => {
    process.stderr.write(`validate: ${error.message}\n`);
    process.exitCode = error instanceof Failed ? error.status : EXIT.noAnswer;
  },
);
