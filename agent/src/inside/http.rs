//! The little of HTTP/1.1 that is spoken on the socket: one request a connection, its length told, JSON or nothing.
//! Without I/O.

use super::{BODY_BYTES, PATH_BYTES};

pub const HEAD_BYTES: usize = 8 << 10;
const FIELDS: usize = 32;

#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    pub path: String,
    /// The answer is for people to read.
    pub text: bool,
    pub body: Vec<u8>,
}

/// What is answered in place of the daemon.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    pub status: u16,
    pub code: &'static str,
    pub message: &'static str,
}

fn refuse<T>(status: u16, code: &'static str, message: &'static str) -> Result<T, Refusal> {
    Err(Refusal {
        status,
        code,
        message,
    })
}

/// None as long as more must come.
pub fn parse(data: &[u8]) -> Result<Option<Request>, Refusal> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS];
    let mut head = httparse::Request::new(&mut fields);
    let length = match head.parse(data) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if data.len() < HEAD_BYTES => return Ok(None),
        Ok(httparse::Status::Partial) => {
            return refuse(431, "VALIDATION_FAILED", "The head is larger than 8 KiB.");
        }
        Err(_) => return refuse(400, "INVALID_BODY", "This is not an HTTP/1.1 request."),
    };
    let (Some(method), Some(path)) = (head.method, head.path) else {
        return refuse(400, "INVALID_BODY", "This is not an HTTP/1.1 request.");
    };
    if method.len() > 16 || !method.bytes().all(|byte| byte.is_ascii_uppercase()) {
        return refuse(405, "METHOD_NOT_ALLOWED", "There is no such method here.");
    }
    if !path.starts_with('/') || path.len() > PATH_BYTES || !path.is_ascii() {
        return refuse(404, "NOT_FOUND", "Nothing is served at this path.");
    }
    let mut body_length = None;
    let mut text = false;
    for field in head.headers.iter() {
        if field.name.eq_ignore_ascii_case("transfer-encoding") {
            return refuse(411, "INVALID_BODY", "Send a Content-Length, not chunks.");
        }
        if field.name.eq_ignore_ascii_case("content-length") {
            let digits = field.value;
            let number = std::str::from_utf8(digits)
                .ok()
                .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()) && text.len() < 10)
                .and_then(|text| text.parse::<usize>().ok());
            match number {
                Some(number) if body_length.is_none() => body_length = Some(number),
                _ => return refuse(400, "INVALID_BODY", "The Content-Length is no number."),
            }
        }
        if field.name.eq_ignore_ascii_case("accept") {
            text = field.value.starts_with(b"text/plain");
        }
    }
    let body_length = body_length.unwrap_or(0);
    if body_length > BODY_BYTES {
        return refuse(413, "PAYLOAD_TOO_LARGE", "A body is 16 KiB at most.");
    }
    let Some(body) = data.get(length..length + body_length) else {
        return Ok(None);
    };
    Ok(Some(Request {
        method: method.to_owned(),
        path: path.to_owned(),
        text,
        body: body.to_vec(),
    }))
}

/// The connection ends with it.
pub fn answer(status: u16, text: bool, body: &[u8]) -> Vec<u8> {
    let kind = match text {
        true => "text/plain; charset=utf-8",
        false => "application/json",
    };
    let head = format!(
        "HTTP/1.1 {status} {}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        reason(status),
        body.len()
    );
    [head.as_bytes(), body].concat()
}

impl Refusal {
    pub fn answer(&self, text: bool) -> Vec<u8> {
        let retryable = matches!(self.status, 429 | 503 | 504);
        let body = match text {
            true => format!("{}\n", self.message),
            false => format!(
                "{{\"error_code\": \"{}\", \"message\": \"{}\", \"retryable\": {retryable}, \"details\": {{}}}}",
                self.code, self.message
            ),
        };
        answer(self.status, text, body.as_bytes())
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        400..500 => "Refused",
        _ => "Failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(data: &[u8]) -> u16 {
        parse(data).expect_err("a refusal").status
    }

    #[test]
    fn whole_requests() {
        let get = b"GET /v1/status HTTP/1.1\r\nHost: roost\r\nAccept: text/plain\r\n\r\n";
        let found = parse(get).expect("fine").expect("whole");
        assert_eq!(
            (found.method.as_str(), found.path.as_str(), found.text),
            ("GET", "/v1/status", true)
        );
        let post = b"POST /v1/ports HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}";
        for end in 0..post.len() {
            assert_eq!(parse(&post[..end]), Ok(None), "{end}");
        }
        let found = parse(post).expect("fine").expect("whole");
        assert_eq!((found.body.as_slice(), found.text), (&b"{}"[..], false));
    }

    #[test]
    fn what_is_refused() {
        assert_eq!(status(b"\x00\x01"), 400);
        assert_eq!(status(b"GET /\r\n\r\n"), 400);
        assert_eq!(status(b"get / HTTP/1.1\r\n\r\n"), 405);
        assert_eq!(status(b"GET * HTTP/1.1\r\n\r\n"), 404);
        assert_eq!(
            status(format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(2000)).as_bytes()),
            404
        );
        let chunks = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(status(chunks), 411);
        for length in ["-1", "+1", "", "1 1", "99999999999999999999"] {
            let head = format!("POST / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n");
            assert_eq!(status(head.as_bytes()), 400, "{length:?}");
        }
        let twice = b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx";
        assert_eq!(status(twice), 400);
        assert_eq!(
            status(b"POST / HTTP/1.1\r\nContent-Length: 16385\r\n\r\n"),
            413
        );
        let endless = format!("GET / HTTP/1.1\r\nx: {}", "y".repeat(HEAD_BYTES));
        assert_eq!(status(endless.as_bytes()), 431);
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(100));
        assert_eq!(status(many.as_bytes()), 400);
    }
}
