//! `roost` inside a machine: this program under another name, that speaks to the agent's socket.
//!
//! It prints what the daemon says, and knows little of what can be said. Exit codes: 0 done; 1 refused or failed;
//! 2 used wrongly; 3 no daemon; 4 not allowed; 5 too often, try again.

use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::rand::{GetRandomFlags, getrandom};

use super::SOCKET;

const NAME: &[u8] = b"roost";
const USAGE: &str = "\
usage: roost [--json] COMMAND

  status                    this machine: id, size, phase, addresses
  usage                     what it uses now, and has used in all
  budget                    what it may still do: time, forks, ports
  ports                     which of its ports are shown, and where
  expose PORT               show a port; prints its URL
    [--name NAME]           under a name of its own
    [--public]              for everybody, not only its owner
  unexpose PORT             end what expose began
  fork                      a copy that goes on from here; prints the copies' ids,
                            and in a copy that has its memory the word child
    [--count N] [--name NAME]
    [--inherit]             the copies may expose and sleep as this one may
  sleep                     until somebody needs it; in a moment
    [--tier frozen|hibernated|stopped]
  help

What a machine may do beyond looking is its owner's to allow (roost create --allow-inside).
Programs ask the same over /run/roost/socket: curl --unix-socket /run/roost/socket http://roost/v1/status
";
const TIMEOUT: Duration = Duration::from_secs(75);
/// A fork of a large machine takes long, and its link breaks meanwhile.
const FORK: Duration = Duration::from_secs(600);
const PAUSE: Duration = Duration::from_millis(200);

/// Whether this program was called by the helper's name.
pub fn called() -> bool {
    let name = std::env::args_os().next().unwrap_or_default();
    Path::new(&name)
        .file_name()
        .is_some_and(|name| name.as_bytes() == NAME)
}

pub fn main() -> ! {
    let arguments: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    std::process::exit(run(&arguments));
}

#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    Help,
    Version,
    Ask {
        method: &'static str,
        path: String,
        body: String,
    },
    /// The body without its key.
    Fork(String),
}

fn run(arguments: &[String]) -> i32 {
    let json = arguments.iter().any(|argument| argument == "--json");
    let rest: Vec<&str> = arguments
        .iter()
        .map(String::as_str)
        .filter(|argument| *argument != "--json")
        .collect();
    match parse(&rest) {
        Ok(Wanted::Help) => {
            print(USAGE.as_bytes());
            0
        }
        Ok(Wanted::Version) => {
            print(format!("roost {} (inside)\n", env!("CARGO_PKG_VERSION")).as_bytes());
            0
        }
        Ok(Wanted::Ask { method, path, body }) => told(ask(method, &path, &body, json)),
        Ok(Wanted::Fork(body)) => fork(&body, json),
        Err(problem) => {
            eprintln!("roost: {problem}\nroost help shows what there is.");
            2
        }
    }
}

fn parse(arguments: &[&str]) -> Result<Wanted, String> {
    let mut rest = arguments.iter().copied();
    let get = |path: &str| Wanted::Ask {
        method: "GET",
        path: path.to_owned(),
        body: String::new(),
    };
    let command = rest.next().unwrap_or("help");
    let mut options = Options::read(rest)?;
    let wanted = match command {
        "help" | "--help" | "-h" => Wanted::Help,
        "--version" => Wanted::Version,
        "status" | "usage" | "budget" | "ports" => get(&format!("/v1/{command}")),
        "expose" => {
            let port = options.port()?;
            let mut body = Body::new();
            body.number("port", port);
            body.text("name", options.take("--name"));
            body.flag("public", options.flag("--public"));
            Wanted::Ask {
                method: "POST",
                path: "/v1/ports".to_owned(),
                body: body.end(),
            }
        }
        "unexpose" => Wanted::Ask {
            method: "DELETE",
            path: format!("/v1/ports/{}", options.port()?),
            body: String::new(),
        },
        "fork" => {
            let mut body = Body::new();
            if let Some(count) = options.take("--count") {
                body.number("count", number(&count, "--count")?);
            }
            body.text("name", options.take("--name"));
            body.flag("inherit", options.flag("--inherit"));
            Wanted::Fork(body.end())
        }
        "sleep" => {
            let mut body = Body::new();
            body.text("tier", options.take("--tier"));
            Wanted::Ask {
                method: "POST",
                path: "/v1/sleep".to_owned(),
                body: body.end(),
            }
        }
        _ => return Err(format!("there is no command {command:?}")),
    };
    options.end()?;
    Ok(wanted)
}

/// What follows a command.
struct Options {
    plain: Vec<String>,
    named: Vec<(String, Option<String>)>,
}

impl Options {
    fn read<'a>(mut rest: impl Iterator<Item = &'a str>) -> Result<Options, String> {
        let mut options = Options {
            plain: Vec::new(),
            named: Vec::new(),
        };
        while let Some(argument) = rest.next() {
            if !argument.starts_with("--") {
                options.plain.push(argument.to_owned());
                continue;
            }
            let (name, value) = match argument.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None if matches!(argument, "--name" | "--count" | "--tier") => {
                    let value = rest.next().ok_or(format!("{argument} needs a value"))?;
                    (argument, Some(value.to_owned()))
                }
                None => (argument, None),
            };
            options.named.push((name.to_owned(), value));
        }
        Ok(options)
    }

    fn find(&mut self, name: &str, valued: bool) -> Option<Option<String>> {
        let matches =
            |(known, value): &(String, Option<String>)| known == name && value.is_some() == valued;
        let at = self.named.iter().position(matches)?;
        Some(self.named.remove(at).1)
    }

    fn take(&mut self, name: &str) -> Option<String> {
        self.find(name, true).flatten()
    }

    fn flag(&mut self, name: &str) -> bool {
        self.find(name, false).is_some()
    }

    fn port(&mut self) -> Result<u32, String> {
        match self.plain.len() {
            1 => number(&self.plain.remove(0), "PORT"),
            _ => Err("name one port".to_owned()),
        }
    }

    /// Nothing may be left.
    fn end(self) -> Result<(), String> {
        let named = self.named.into_iter().map(|(name, _)| name);
        match self.plain.into_iter().chain(named).next() {
            Some(left) => Err(format!("{left:?} is not understood here")),
            None => Ok(()),
        }
    }
}

fn number(text: &str, what: &str) -> Result<u32, String> {
    text.parse()
        .map_err(|_| format!("{what} is a number, not {text:?}"))
}

/// A flat JSON object.
struct Body(Vec<String>);

impl Body {
    fn new() -> Body {
        Body(Vec::new())
    }

    fn number(&mut self, name: &str, value: u32) {
        self.0.push(format!("\"{name}\": {value}"));
    }

    fn text(&mut self, name: &str, value: Option<String>) {
        if let Some(value) = value {
            self.0.push(format!("\"{name}\": {}", quoted(&value)));
        }
    }

    fn flag(&mut self, name: &str, value: bool) {
        if value {
            self.0.push(format!("\"{name}\": true"));
        }
    }

    fn end(self) -> String {
        format!("{{{}}}", self.0.join(", "))
    }
}

fn quoted(text: &str) -> String {
    let escaped: String = text
        .chars()
        .map(|char| match char {
            '"' | '\\' => format!("\\{char}"),
            char if (char as u32) < 0x20 => format!("\\u{:04x}", char as u32),
            char => char.to_string(),
        })
        .collect();
    format!("\"{escaped}\"")
}

struct Answer {
    status: u16,
    body: Vec<u8>,
}

const NOT_FOUND: u16 = 404;
const ACCEPTED: u16 = 202;
const UNREACHABLE: u16 = 503;

/// A socket that is not there is a daemon that cannot be reached.
fn ask(method: &str, path: &str, body: &str, json: bool) -> Answer {
    match exchange(method, path, body, json) {
        Ok(answer) => answer,
        Err(error) => {
            let message = format!(
                "{}: {error}: this machine's agent does not listen",
                socket()
            );
            let body = match json {
                true => format!(
                    "{{\"error_code\": \"DAEMON_UNREACHABLE\", \"message\": {}, \"retryable\": true, \"details\": {{}}}}",
                    quoted(&message)
                ),
                false => message,
            };
            Answer {
                status: UNREACHABLE,
                body: body.into_bytes(),
            }
        }
    }
}

fn socket() -> String {
    std::env::var("ROOST_SOCKET").unwrap_or_else(|_| SOCKET.to_owned())
}

fn exchange(method: &str, path: &str, body: &str, json: bool) -> std::io::Result<Answer> {
    let mut stream = UnixStream::connect(socket())?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let kind = if json {
        "application/json"
    } else {
        "text/plain"
    };
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: roost\r\naccept: {kind}\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(head.as_bytes())?;
    let mut said = Vec::new();
    stream.take(1 << 20).read_to_end(&mut said)?;
    read(&said).ok_or_else(|| std::io::Error::other("the answer broke off"))
}

fn read(said: &[u8]) -> Option<Answer> {
    let mut fields = [httparse::EMPTY_HEADER; 16];
    let mut head = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(end) = head.parse(said).ok()? else {
        return None;
    };
    let status = head.code?;
    let length = head
        .headers
        .iter()
        .find(|field| field.name.eq_ignore_ascii_case("content-length"))?;
    let length: usize = std::str::from_utf8(length.value).ok()?.parse().ok()?;
    let body = said.get(end..end.checked_add(length)?)?.to_vec();
    Some(Answer { status, body })
}

/// Prints it; the exit code.
fn told(answer: Answer) -> i32 {
    let mut body = answer.body;
    if !body.is_empty() && !body.ends_with(b"\n") {
        body.push(b'\n');
    }
    if (200..300).contains(&answer.status) {
        print(&body);
        return 0;
    }
    let mut errors = std::io::stderr().lock();
    if !body.starts_with(b"{") {
        let _ = errors.write_all(b"roost: ");
    }
    let _ = errors.write_all(&body);
    match answer.status {
        403 => 4,
        429 => 5,
        UNREACHABLE => 3,
        _ => 1,
    }
}

fn print(text: &[u8]) {
    // A reader that has gone is no failure of ours.
    let _ = std::io::stdout().lock().write_all(text);
}

/// The copies have this process, too, on a rung that keeps memory: all of them ask how it went, by a key that was made
/// before, and each hears its own part. Asked again for as long as the link is down, which a capture cuts.
fn fork(body: &str, json: bool) -> i32 {
    let mut random = [0; 16];
    if getrandom(&mut random, GetRandomFlags::empty()) != Ok(random.len()) {
        eprintln!("roost: this machine has no randomness yet: try again");
        return 1;
    }
    let key: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let rest = body.strip_prefix('{').unwrap_or(body);
    let comma = if rest == "}" { "" } else { ", " };
    let deadline = Instant::now() + FORK;
    let begun = ask(
        "POST",
        "/v1/forks",
        &format!("{{\"key\": \"{key}\"{comma}{rest}"),
        json,
    );
    if begun.status != ACCEPTED && begun.status != UNREACHABLE {
        return told(begun);
    }
    let mut known = begun.status == ACCEPTED;
    loop {
        let answer = ask("GET", &format!("/v1/forks/{key}"), "", json);
        match answer.status {
            ACCEPTED => known = true,
            UNREACHABLE | 429 | 504 => std::thread::sleep(PAUSE),
            // It was never begun: the first request did not get there.
            NOT_FOUND if !known => return told(begun),
            _ => return told(answer),
        }
        if Instant::now() > deadline {
            return told(answer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(arguments: &[&str]) -> (String, String) {
        match parse(arguments).expect("understood") {
            Wanted::Ask { method, path, body } => (format!("{method} {path}"), body),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn commands() {
        assert_eq!(asked(&["status"]).0, "GET /v1/status");
        assert_eq!(
            asked(&["expose", "8000", "--name", "a\"b", "--public"]),
            (
                "POST /v1/ports".to_owned(),
                r#"{"port": 8000, "name": "a\"b", "public": true}"#.to_owned()
            )
        );
        assert_eq!(asked(&["unexpose", "80"]).0, "DELETE /v1/ports/80");
        assert_eq!(
            asked(&["sleep", "--tier=frozen"]).1,
            r#"{"tier": "frozen"}"#
        );
        assert_eq!(parse(&["fork"]), Ok(Wanted::Fork("{}".to_owned())));
        assert_eq!(
            parse(&["fork", "--count", "2", "--inherit"]),
            Ok(Wanted::Fork(r#"{"count": 2, "inherit": true}"#.to_owned()))
        );
        assert_eq!(parse(&[]), Ok(Wanted::Help));
    }

    #[test]
    fn what_is_not_understood() {
        for wrong in [
            &["expose"][..],
            &["expose", "x"],
            &["expose", "1", "2"],
            &["status", "--public"],
            &["fork", "--count"],
            &["fork", "--count", "-1"],
            &["sleep", "now"],
            &["expose", "1", "--public=yes"],
            &["snore"],
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn answers() {
        let said = crate::inside::http::answer(403, true, b"no\n");
        let read = read(&said).expect("an answer");
        assert_eq!((read.status, read.body.as_slice()), (403, &b"no\n"[..]));
        assert!(super::read(&said[..said.len() - 1]).is_none());
    }
}
