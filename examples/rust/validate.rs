// Asks the license agent about a token or a feature, as docs/protocol.md says. Rust 1.63 or later, standard library only; Linux.
//
//     rustc -O validate.rs && ./validate TOKEN [SOCKET]    TOKEN "-" reads the token from standard input
//     ./validate require:FEATURE [SOCKET]                  without a token: does a license of this machine allow FEATURE?
//
// Prints one line, its fields separated by tabs: "valid" or "invalid", the reason, expires_at ("-" if there is none),
// then the features. Exit status: 0 valid, 1 not valid, 2 wrong usage, 3 no answer, 4 error reply.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::raw::{c_int, c_void};
use std::os::unix::fs::MetadataExt;
use std::os::unix::io::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

const PROTOCOL_VERSION: u64 = 1;
const NONCE_BYTES: usize = 16;
const MAX_TOKEN_CHARS: usize = 16 * 1024;
const MAX_FRAME_BYTES: usize = 64 * 1024;
const MAX_DEPTH: usize = 16;
const DEADLINE: Duration = Duration::from_secs(2);
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
const RETRIED_CODES: [u64; 4] = [8, 11, 12, 15]; // RATE_LIMITED, SHUTTING_DOWN, TIMED_OUT, UNAVAILABLE
const REASONS: [&str; 11] = [
    "ok", "expired", "not_yet_valid", "malformed", "unknown_secret", "secret_invalidated",
    "bad_signature", "wrong_audience", "revoked", "degraded_expired", "revocations_stale",
];
const FLAGS: [&str; 4] = ["degraded", "clock_suspect", "reissue_due", "refreshed"];
const FEATURE_FLAGS: [&str; 2] = ["degraded", "clock_suspect"];
const VALID: i32 = 0;
const INVALID: i32 = 1;
const USAGE: i32 = 2;
const NO_ANSWER: i32 = 3;
const REFUSED: i32 = 4;

enum Trouble {
    /// Ends the call with an exit status.
    Failed(i32, String),
    /// Worth another attempt.
    TryAgain(String),
}
use Trouble::{Failed, TryAgain};

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        TryAgain(error.to_string())
    }
}

fn invalid_reply<T>(text: &str) -> Result<T, Trouble> {
    Err(Failed(REFUSED, format!("the reply is invalid: {text}")))
}

enum Question<'a> {
    Token(&'a str),
    Feature(&'a str),
}

struct Verdict {
    valid: bool,
    reason: String,
    expires_at: Option<u64>,
    features: Vec<String>,
}

// MessagePack: as much of it as requests and replies use.

fn text(into: &mut Vec<u8>, text: &str) {
    into.push(0xda);
    into.extend((text.len() as u16).to_be_bytes());
    into.extend(text.as_bytes());
}

fn request(id: u64, question: &Question, nonce: &[u8; NONCE_BYTES]) -> Vec<u8> {
    let mut body = vec![if matches!(question, Question::Token(_)) { 0x85 } else { 0x86 }];
    text(&mut body, "v");
    body.push(PROTOCOL_VERSION as u8);
    text(&mut body, "id");
    body.push(0xcf);
    body.extend(id.to_be_bytes());
    text(&mut body, "op");
    match question {
        Question::Token(token) => {
            text(&mut body, "validate_license");
            text(&mut body, "token");
            text(&mut body, token);
        }
        Question::Feature(feature) => {
            text(&mut body, "require");
            text(&mut body, "feature");
            text(&mut body, feature);
            text(&mut body, "product"); // the product that the license must be for; nil is any
            body.push(0xc0);
        }
    }
    text(&mut body, "nonce");
    body.extend([0xc4, NONCE_BYTES as u8]);
    body.extend(nonce);
    let mut frame = (body.len() as u32).to_be_bytes().to_vec();
    frame.extend(body);
    frame
}

#[derive(PartialEq)]
enum Value {
    Nil,
    Bool(bool),
    Unsigned(u64),
    Negative,
    Float,
    Text(String),
    Bytes(Vec<u8>),
    List(Vec<Value>),
    Map(BTreeMap<String, Value>),
}

struct Decoder<'a> {
    data: &'a [u8],
}

impl<'a> Decoder<'a> {
    fn take(&mut self, size: u64) -> Result<&'a [u8], Trouble> {
        if size > self.data.len() as u64 {
            return invalid_reply("it is cut short");
        }
        let (taken, rest) = self.data.split_at(size as usize);
        self.data = rest;
        Ok(taken)
    }

    fn unsigned(&mut self, size: u64) -> Result<u64, Trouble> {
        Ok(self.take(size)?.iter().fold(0, |number, digit| number << 8 | u64::from(*digit)))
    }

    fn value(&mut self, depth: usize) -> Result<Value, Trouble> {
        if depth > MAX_DEPTH {
            return invalid_reply("it is nested too deeply");
        }
        let head = self.unsigned(1)?;
        match head {
            0..=0x7f => Ok(Value::Unsigned(head)),
            0x80..=0x8f => self.map(head & 0x0f, depth),
            0x90..=0x9f => self.list(head & 0x0f, depth),
            0xa0..=0xbf => self.string(head & 0x1f),
            0xc0 => Ok(Value::Nil),
            0xc2 | 0xc3 => Ok(Value::Bool(head == 0xc3)),
            0xc4..=0xc6 => {
                let size = self.unsigned(1 << (head - 0xc4))?;
                Ok(Value::Bytes(self.take(size)?.to_vec()))
            }
            0xca | 0xcb => self.take(if head == 0xca { 4 } else { 8 }).map(|_| Value::Float),
            0xcc..=0xcf => Ok(Value::Unsigned(self.unsigned(1 << (head - 0xcc))?)),
            0xd0..=0xd3 => {
                let size = 1 << (head - 0xd0);
                let number = self.unsigned(size)?;
                let negative = number >> (8 * size - 1) == 1;
                Ok(if negative { Value::Negative } else { Value::Unsigned(number) })
            }
            0xd9..=0xdb => {
                let size = self.unsigned(1 << (head - 0xd9))?;
                self.string(size)
            }
            0xdc | 0xdd => {
                let count = self.unsigned(2 << (head - 0xdc))?;
                self.list(count, depth)
            }
            0xde | 0xdf => {
                let count = self.unsigned(2 << (head - 0xde))?;
                self.map(count, depth)
            }
            0xe0..=0xff => Ok(Value::Negative),
            _ => invalid_reply("it holds an extension type"),
        }
    }

    fn string(&mut self, size: u64) -> Result<Value, Trouble> {
        match std::str::from_utf8(self.take(size)?) {
            Ok(text) => Ok(Value::Text(text.to_string())),
            Err(_) => invalid_reply("a text is not UTF-8"),
        }
    }

    fn list(&mut self, count: u64, depth: usize) -> Result<Value, Trouble> {
        let mut items = Vec::new();
        for _ in 0..count {
            items.push(self.value(depth + 1)?);
        }
        Ok(Value::List(items))
    }

    fn map(&mut self, count: u64, depth: usize) -> Result<Value, Trouble> {
        let mut entries = BTreeMap::new();
        for _ in 0..count {
            let key = match self.value(depth + 1)? {
                Value::Text(key) if !entries.contains_key(&key) => key,
                _ => return invalid_reply("a key comes twice, or is not a text"),
            };
            entries.insert(key, self.value(depth + 1)?);
        }
        Ok(Value::Map(entries))
    }
}

// Who is at the other end: root, the agent's user or our own must own the socket's directory and serve the socket.

#[repr(C)]
struct Ucred {
    pid: i32,
    uid: u32,
    gid: u32,
}
const SOL_SOCKET: c_int = 1;
const SO_PEERCRED: c_int = 17;
extern "C" {
    // The standard library links the C library anyway; its own peer_cred is not stable yet.
    fn getsockopt(socket: c_int, level: c_int, option: c_int, value: *mut c_void, size: *mut u32) -> c_int;
    fn geteuid() -> u32;
}

fn agent_uid() -> Option<u32> {
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    let line = users.lines().find(|line| line.starts_with("license-agent:"))?;
    line.split(':').nth(2)?.parse().ok()
}

fn trusted(uid: u32) -> bool {
    // Safety: geteuid takes nothing and cannot fail.
    uid == 0 || uid == unsafe { geteuid() } || Some(uid) == agent_uid()
}

fn check_directory(path: &Path) -> Result<(), Trouble> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let info = match std::fs::metadata(directory) {
        Ok(info) => info,
        Err(error) => return Err(TryAgain(format!("{} cannot be examined: {error}", directory.display()))),
    };
    if !trusted(info.uid()) || info.mode() & 0o022 != 0 {
        return Err(Failed(NO_ANSWER, format!("{} belongs to others, or others may write to it", directory.display())));
    }
    Ok(())
}

fn check_peer(stream: &UnixStream, path: &Path) -> Result<(), Trouble> {
    let mut peer = Ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut size = std::mem::size_of::<Ucred>() as u32;
    let place: *mut Ucred = &mut peer;
    // Safety: the kernel writes at most `size` bytes to `peer`, which lives until after the call.
    let status = unsafe { getsockopt(stream.as_raw_fd(), SOL_SOCKET, SO_PEERCRED, place.cast(), &mut size) };
    if status != 0 || !trusted(peer.uid) {
        return Err(Failed(NO_ANSWER, format!("{} is not served by root or the agent", path.display())));
    }
    Ok(())
}

// One attempt

fn time_left(ends: Instant) -> Result<Duration, Trouble> {
    match ends.checked_duration_since(Instant::now()) {
        Some(left) if !left.is_zero() => Ok(left),
        _ => Err(TryAgain("no reply in time".to_string())),
    }
}

fn receive(stream: &mut UnixStream, into: &mut [u8], ends: Instant) -> Result<(), Trouble> {
    let mut have = 0;
    while have < into.len() {
        stream.set_read_timeout(Some(time_left(ends)?))?;
        match stream.read(&mut into[have..]) {
            Ok(0) => return Err(TryAgain("the agent closed the connection".to_string())),
            Ok(got) => have += got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn exchange(path: &Path, frame: &[u8], ends: Instant) -> Result<Vec<u8>, Trouble> {
    let mut stream = UnixStream::connect(path)?;
    check_peer(&stream, path)?;
    stream.set_write_timeout(Some(time_left(ends)?))?;
    // The agent may have said why before it closed: the reply is read, whatever became of the write.
    let _ = stream.write_all(frame);
    let mut head = [0; 4];
    receive(&mut stream, &mut head, ends)?;
    let size = u32::from_be_bytes(head) as usize;
    if size == 0 || size > MAX_FRAME_BYTES {
        return invalid_reply(&format!("it says that it has {size} bytes"));
    }
    let mut body = vec![0; size];
    receive(&mut stream, &mut body, ends)?;
    Ok(body)
}

fn read_verdict(body: &[u8], id: u64, question: &Question, nonce: &[u8; NONCE_BYTES]) -> Result<Verdict, Trouble> {
    let mut decoder = Decoder { data: body };
    let mut reply = match decoder.value(0)? {
        Value::Map(reply) if decoder.data.is_empty() => reply,
        _ => return invalid_reply("it is not one map"),
    };
    if let Some(Value::Map(error)) = reply.get("error") {
        let code = if let Some(Value::Unsigned(code)) = error.get("code") { *code } else { 0 };
        let said = if let Some(Value::Text(said)) = error.get("text") { said } else { "" };
        let text = format!("error {code}: {said}");
        return Err(if RETRIED_CODES.contains(&code) { TryAgain(text) } else { Failed(REFUSED, text) });
    }
    let ours = reply.get("v") == Some(&Value::Unsigned(PROTOCOL_VERSION))
        && reply.get("id") == Some(&Value::Unsigned(id))
        && reply.get("nonce") == Some(&Value::Bytes(nonce.to_vec()));
    if !ours {
        return invalid_reply("it answers another request");
    }
    // A token gets one of the list. A machine's licenses may get others, which newer agents have: not valid.
    let (flags, any_reason) = match question {
        Question::Token(_) => (FLAGS.as_slice(), false),
        Question::Feature(_) => (FEATURE_FLAGS.as_slice(), true),
    };
    let (valid, reason) = match (reply.remove("valid"), reply.remove("reason")) {
        (Some(Value::Bool(valid)), Some(Value::Text(reason)))
            if (any_reason || REASONS.contains(&reason.as_str())) && valid == (reason == "ok") => (valid, reason),
        _ => return invalid_reply("valid and reason"),
    };
    if !flags.iter().all(|flag| matches!(reply.get(*flag), Some(Value::Bool(_)))) {
        return invalid_reply("a flag is missing");
    }
    let expires_at = match reply.remove("expires_at") {
        Some(Value::Nil) => None,
        Some(Value::Unsigned(seconds)) => Some(seconds),
        _ => return invalid_reply("expires_at"),
    };
    let mut features = Vec::new();
    match reply.remove("features") {
        Some(Value::List(items)) => {
            for item in items {
                match item {
                    Value::Text(name) => features.push(name),
                    _ => return invalid_reply("features"),
                }
            }
        }
        _ => return invalid_reply("features"),
    }
    if let Question::Feature(feature) = question {
        let named = matches!(reply.get("license"), Some(Value::Text(_)));
        if valid && !(named && features.iter().any(|name| name == feature)) {
            return invalid_reply("no license allows the feature");
        }
    }
    Ok(Verdict { valid, reason, expires_at, features })
}

// All attempts

fn random(into: &mut [u8]) -> io::Result<()> {
    File::open("/dev/urandom")?.read_exact(into)
}

fn attempt(path: &Path, id: u64, question: &Question, ends: Instant) -> Result<Verdict, Trouble> {
    check_directory(path)?;
    let mut nonce = [0; NONCE_BYTES]; // a fresh one for each attempt: the agent takes none twice
    random(&mut nonce)?;
    let body = exchange(path, &request(id, question, &nonce), ends)?;
    read_verdict(&body, id, question, &nonce)
}

fn ask(path: &Path, question: &Question) -> Result<Verdict, Trouble> {
    let ends = Instant::now() + DEADLINE;
    let mut longest = FIRST_PAUSE;
    let mut id = 1;
    loop {
        let why = match attempt(path, id, question, ends) {
            Err(TryAgain(why)) => why,
            settled => return settled,
        };
        let mut jitter = [0; 1];
        random(&mut jitter)?;
        let pause = longest / 2 + longest / 2 * u32::from(jitter[0]) / 255;
        if Instant::now() + pause >= ends {
            return Err(Failed(NO_ANSWER, why));
        }
        std::thread::sleep(pause);
        longest = (longest * 2).min(LONGEST_PAUSE);
        id += 1;
    }
}

fn run() -> Result<i32, Trouble> {
    let wrong = |text: String| Err(Failed(USAGE, text));
    let mut arguments = std::env::args_os().skip(1);
    let mut token = match arguments.next() {
        Some(given) => given.to_string_lossy().into_owned(),
        None => return wrong("usage: validate TOKEN|-|require:FEATURE [SOCKET]".to_string()),
    };
    let from_input = token == "-";
    if from_input {
        let mut given = Vec::new();
        if let Err(error) = io::stdin().take(2 * MAX_TOKEN_CHARS as u64).read_to_end(&mut given) {
            return wrong(format!("standard input cannot be read: {error}"));
        }
        token = String::from_utf8_lossy(&given).into_owned();
    }
    // A byte order mark and white space around the token do not belong to it.
    let token = token.strip_prefix('\u{feff}').unwrap_or(&token).trim_matches([' ', '\t', '\r', '\n', '\u{b}', '\u{c}'].as_slice());
    let mut question = Question::Token(token);
    if let Some(feature) = token.strip_prefix("require:").filter(|_| !from_input) {
        question = Question::Feature(feature); // no token has a colon
    } else if token.is_empty() || token.len() > MAX_TOKEN_CHARS || !token.is_ascii() {
        if from_input {
            println!("invalid\tmalformed\t-"); // what a file holds is no wrong usage
            return Ok(INVALID);
        }
        return wrong(format!("a token has 1 to {MAX_TOKEN_CHARS} ASCII characters"));
    }
    let named = std::env::var_os("LICENSE_AGENT_SOCKET").filter(|path| !path.is_empty());
    let path = arguments.next().or(named).unwrap_or_else(|| "/run/license-agent/pos.sock".into());
    let verdict = ask(Path::new(&path), &question)?;
    let mut fields = vec![if verdict.valid { "valid" } else { "invalid" }.to_string(), verdict.reason];
    fields.push(verdict.expires_at.map_or("-".to_string(), |seconds| seconds.to_string()));
    fields.extend(verdict.features);
    println!("{}", fields.join("\t"));
    Ok(if verdict.valid { VALID } else { INVALID })
}

fn main() {
    let status = match run() {
        Ok(status) => status,
        Err(Failed(status, text)) => {
            eprintln!("validate: {text}");
            status
        }
        Err(TryAgain(text)) => {
            eprintln!("validate: {text}");
            NO_ANSWER
        }
    };
    std::process::exit(status);
}
