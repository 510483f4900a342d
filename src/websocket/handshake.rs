//! The opening handshake (RFC 6455 §4), both sides: HTTP/1.1 heads in, 101 or a refusal out.
//!
//! Refusals have the statuses and texts that gpush's clients know. We differ where it took what the RFC forbids (a key
//! that is not 16 bytes in base64, headers given twice that may be given once) and where it refused what the RFC allows
//! (further tokens in `Upgrade`; a bound on the server's window, see [`super::deflate`]).

use super::Head;
use super::deflate::DeflateParams;
use crate::demo::CONTENT_SECURITY_POLICY;
use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};
use std::borrow::Cow;
use std::fmt::Write as _;

/// Most headers of one request or response.
pub const HEADERS_MAX: usize = 64;

/// Longest `Sec-WebSocket-Accept`, and the only length it has: 20 bytes in base64.
const ACCEPT_BYTES: usize = 28;

/// RFC 6455 §1.3.
const ACCEPT_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Lenient on the four bits of a key that mean nothing: there are clients that draw 22 characters by lot.
const BASE64: GeneralPurpose =
    GeneralPurpose::new(&STANDARD, GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true));

/// Why there is no 101: an HTTP response, after which the connection closes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{status}: {body}")]
pub struct Rejection {
    /// 400..=599.
    pub status: u16,
    /// One line of text.
    pub body: Cow<'static, str>,
    /// Besides Content-Type, Content-Length and Connection.
    pub headers: Vec<(&'static str, Cow<'static, str>)>,
}

impl Rejection {
    /// With no further headers.
    pub fn new(status: u16, body: impl Into<Cow<'static, str>>) -> Rejection {
        Rejection { status, body: body.into(), headers: Vec::new() }
    }

    /// With one more header, e.g. `Retry-After`.
    pub fn with_header(mut self, name: &'static str, value: impl Into<Cow<'static, str>>) -> Rejection {
        self.headers.push((name, value.into()));
        self
    }

    /// Appends the whole HTTP/1.1 response.
    pub fn write(&self, out: &mut Vec<u8>) {
        let mut head = format!(
            "HTTP/1.1 {} {}\r\nContent-Type: text/plain; charset=utf-8\r\n",
            self.status,
            reason_phrase(self.status)
        );
        for (name, value) in &self.headers {
            write!(head, "{name}: {value}\r\n").expect("a string takes all");
        }
        write!(head, "Content-Length: {}\r\nConnection: close\r\n\r\n{}", self.body.len(), self.body)
            .expect("a string takes all");
        out.extend_from_slice(head.as_bytes());
    }

    fn bad_header(name: &'static str) -> Rejection {
        Rejection::new(400, format!("handshake error: bad \"{name}\" header"))
    }
}

/// Appends the head of an HTTP/1.1 response with a body of `length` bytes, after which the connection ends. A browser asks again
/// each time, believes the content type, and lets the page do no more than its policy says.
pub fn write_page_head(out: &mut Vec<u8>, status: u16, content_type: &str, length: usize) {
    let head = format!(
        "HTTP/1.1 {status} {}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\nCache-Control: no-cache\r\n\
         X-Content-Type-Options: nosniff\r\nContent-Security-Policy: {CONTENT_SECURITY_POLICY}\r\nConnection: close\r\n\r\n",
        reason_phrase(status),
    );
    out.extend_from_slice(head.as_bytes());
}

fn reason_phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "Error",
    }
}

/// Reads a request's head at the start of `input`: the head and its length in bytes; `None` if it is not whole yet.
///
/// The target may be a path or an absolute URI (§4.2.1). Costs one pass over `input` each time, so call it again only
/// when more has arrived.
///
/// # Errors
/// 431 over `head_bytes_max` or [`HEADERS_MAX`], 505 for another HTTP than 1.x, 400 for what is not HTTP.
pub fn parse_head(input: &[u8], head_bytes_max: usize) -> Result<Option<(Head<'_>, usize)>, Rejection> {
    let too_large =
        || Rejection::new(431, format!("request head over {head_bytes_max} bytes or {HEADERS_MAX} headers"));
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let len = match request.parse(input) {
        Ok(httparse::Status::Complete(len)) if len <= head_bytes_max => len,
        Ok(httparse::Status::Partial) if input.len() < head_bytes_max => return Ok(None),
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err(too_large()),
        Err(httparse::Error::Version) if names_http(input) => {
            return Err(Rejection::new(505, "handshake error: bad HTTP protocol version"));
        }
        Err(error) => return Err(Rejection::new(400, format!("malformed request: {error}"))),
    };
    let target = request.path.expect("complete");
    // Of `http://host/path?query`, what follows the host.
    let target = match target.split_once("://") {
        Some((_, rest)) if !target.starts_with('/') => rest.find(['/', '?']).map_or("/", |start| &rest[start..]),
        _ => target,
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let head = Head {
        method: request.method.expect("complete"),
        path,
        query,
        version: request.version.expect("complete"),
        headers: request.headers.iter().map(|header| (header.name, header.value)).collect(),
    };
    Ok(Some((head, len)))
}

/// Whether the request line claims to be HTTP of some version.
fn names_http(input: &[u8]) -> bool {
    let line = input.split(|&byte| byte == b'\n').find(|line| !line.trim_ascii().is_empty()).unwrap_or(&[]);
    line.windows(6).any(|window| window == b" HTTP/")
}

/// A request that may become a WebSocket connection.
#[derive(Clone, Debug)]
pub struct Upgrade<'a> {
    /// `Sec-WebSocket-Accept`, ASCII.
    pub accept: [u8; ACCEPT_BYTES],
    /// What we would answer to the client's permessage-deflate offers; `None` if there is no acceptable one.
    pub deflate_offer: Option<DeflateParams>,
    /// `Origin`, as browsers send it; not checked here.
    pub origin: Option<&'a str>,
    subprotocols: Vec<&'a str>,
}

impl<'a> Upgrade<'a> {
    /// The subprotocols the client offers, most wanted first.
    pub fn subprotocols(&self) -> impl Iterator<Item = &'a str> {
        self.subprotocols.iter().copied()
    }
}

/// Checks that `head` asks for a WebSocket connection as RFC 6455 §4.2.1 wants it.
///
/// # Errors
/// 405 for another method than GET, 505 for HTTP/1.0, 426 with the version we speak for another than 13, 400 with the
/// name of the first header that is missing or wrong.
pub fn upgrade<'a>(head: &Head<'a>) -> Result<Upgrade<'a>, Rejection> {
    if head.method != "GET" {
        return Err(Rejection::new(405, "handshake error: bad HTTP request method").with_header("Allow", "GET"));
    }
    if head.version < 1 {
        return Err(Rejection::new(505, "handshake error: bad HTTP protocol version"));
    }
    if only(head, "Host").is_none_or(str::is_empty) {
        return Err(Rejection::bad_header("Host"));
    }
    if !head.tokens("Upgrade").any(|token| token.eq_ignore_ascii_case("websocket")) {
        return Err(Rejection::bad_header("Upgrade"));
    }
    if !head.tokens("Connection").any(|token| token.eq_ignore_ascii_case("upgrade")) {
        return Err(Rejection::bad_header("Connection"));
    }
    let key = only(head, "Sec-WebSocket-Key").filter(|key| is_key(key));
    let key = key.ok_or_else(|| Rejection::bad_header("Sec-WebSocket-Key"))?;
    match only(head, "Sec-WebSocket-Version") {
        Some("13") => {}
        None | Some("") => return Err(Rejection::bad_header("Sec-WebSocket-Version")),
        Some(_) => {
            let rejection = Rejection { status: 426, ..Rejection::bad_header("Sec-WebSocket-Version") };
            return Err(rejection.with_header("Sec-WebSocket-Version", "13"));
        }
    }
    Ok(Upgrade {
        accept: accept_for(key),
        deflate_offer: accept_deflate(head),
        origin: head.header("Origin"),
        subprotocols: head.tokens("Sec-WebSocket-Protocol").collect(),
    })
}

/// The value of a header that must not come twice (§11.3).
fn only<'a>(head: &Head<'a>, name: &str) -> Option<&'a str> {
    let mut values = head.values(name);
    let value = values.next().and_then(|value| std::str::from_utf8(value).ok());
    if values.next().is_some() { None } else { value }
}

/// 16 bytes in base64.
fn is_key(key: &str) -> bool {
    key.len() == 24 && BASE64.decode_slice(key, &mut [0; 18]) == Ok(16)
}

/// `Sec-WebSocket-Accept` for a key, both as they travel (§4.2.2).
pub fn accept_for(key: &str) -> [u8; ACCEPT_BYTES] {
    let mut sha1 = sha1_smol::Sha1::new();
    sha1.update(key.as_bytes());
    sha1.update(ACCEPT_GUID);
    let mut accept = [0; ACCEPT_BYTES];
    let len = BASE64.encode_slice(sha1.digest().bytes(), &mut accept).expect("20 bytes become 28");
    debug_assert_eq!(len, ACCEPT_BYTES);
    accept
}

/// Chooses among the client's permessage-deflate offers (RFC 7692 §5, §7.1).
///
/// The first that leaves our window alone, so that the connection can share compressed frames; else the first
/// acceptable one, whose bound on our window is then kept. Offers with a parameter that is unknown, given twice or has
/// a bad value are passed over, as are other extensions.
fn accept_deflate(head: &Head<'_>) -> Option<DeflateParams> {
    let mut chosen: Option<DeflateParams> = None;
    for list in head.values("Sec-WebSocket-Extensions").filter_map(|value| std::str::from_utf8(value).ok()) {
        for offer in split_unquoted(list, ',').filter_map(parse_offer) {
            if offer.shares_frames() {
                return Some(offer);
            }
            chosen = chosen.or(Some(offer));
        }
    }
    chosen
}

fn parse_offer(offer: &str) -> Option<DeflateParams> {
    let mut parts = split_unquoted(offer, ';');
    if !parts.next()?.eq_ignore_ascii_case("permessage-deflate") {
        return None;
    }
    let mut params = DeflateParams::default();
    let (mut server_alone, mut client_alone, mut client_window) = (false, false, false);
    for part in parts {
        let (name, value) = match part.split_once('=') {
            Some((name, value)) => (name.trim_end(), Some(unquote(value.trim_start())?)),
            None => (part, None),
        };
        let first = match (name, value) {
            // We do both anyway, and say so in the answer.
            ("server_no_context_takeover", None) => !std::mem::replace(&mut server_alone, true),
            ("client_no_context_takeover", None) => !std::mem::replace(&mut client_alone, true),
            // We read any window, so that the answer needs no bound.
            ("client_max_window_bits", None) => !std::mem::replace(&mut client_window, true),
            ("client_max_window_bits", Some(bits)) => {
                window_bits(bits)?;
                !std::mem::replace(&mut client_window, true)
            }
            ("server_max_window_bits", Some(bits)) => {
                params.server_max_window_bits.replace(window_bits(bits)?).is_none()
            }
            _ => false,
        };
        if !first {
            return None;
        }
    }
    Some(params)
}

/// 8..=15, without leading zeros (§7.1.2).
fn window_bits(value: &str) -> Option<u8> {
    match value {
        "8" | "9" | "10" | "11" | "12" | "13" | "14" | "15" => value.parse().ok(),
        _ => None,
    }
}

/// A parameter's value as a token, out of its quotes if it has any (RFC 6455 §9.1).
fn unquote(value: &str) -> Option<&str> {
    match value.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"'),
        None => Some(value),
    }
}

/// The parts of a list, trimmed; a separator inside quotes is none.
fn split_unquoted(list: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    list.split(move |c| {
        quoted ^= c == '"';
        c == separator && !quoted
    })
    .map(|part| part.trim_matches([' ', '\t']))
}

/// Appends the 101. `subprotocol` must be one of those offered; `deflate` accepts `deflate_offer`, if there is one.
pub fn write_101(out: &mut Vec<u8>, upgrade: &Upgrade<'_>, subprotocol: Option<&str>, deflate: bool) {
    out.extend_from_slice(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ",
    );
    out.extend_from_slice(&upgrade.accept);
    out.extend_from_slice(b"\r\n");
    if let Some(subprotocol) = subprotocol {
        out.extend_from_slice(b"Sec-WebSocket-Protocol: ");
        out.extend_from_slice(subprotocol.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    if let Some(params) = upgrade.deflate_offer.filter(|_| deflate) {
        out.extend_from_slice(
            b"Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover",
        );
        if let Some(bits) = params.server_max_window_bits {
            out.extend_from_slice(format!("; server_max_window_bits={bits}").as_bytes());
        }
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends a client's request for `ws://{host}{path}`. `key` is 16 random bytes in base64; `extra_headers` go last.
pub fn write_request(out: &mut Vec<u8>, host: &str, path: &str, key: &str, extra_headers: &[(&str, &str)]) {
    let mut head = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
    );
    for (name, value) in extra_headers {
        write!(head, "{name}: {value}\r\n").expect("a string takes all");
    }
    head.push_str("\r\n");
    out.extend_from_slice(head.as_bytes());
}

/// A response's status, the length of its head in bytes, and its headers as sent.
pub type Response<'a> = (u16, usize, Vec<(&'a str, &'a [u8])>);

/// Reads a response's head at the start of `input`; `None` if it is not whole yet.
///
/// # Errors
/// What is not HTTP/1.x, or has more than [`HEADERS_MAX`] headers.
pub fn parse_response(input: &[u8]) -> Result<Option<Response<'_>>, httparse::Error> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    Ok(match response.parse(input)? {
        httparse::Status::Partial => None,
        httparse::Status::Complete(len) => {
            let headers = response.headers.iter().map(|header| (header.name, header.value)).collect();
            Some((response.code.expect("complete"), len, headers))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ=="; // RFC 6455 §1.3.
    const GOOD: &str = "GET /ws?a=b HTTP/1.1\r\nHost: gateway:9992\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\
                        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

    fn rejection(request: &str) -> Rejection {
        match parse_head(request.as_bytes(), 8192) {
            Ok(Some((head, _))) => upgrade(&head).expect_err("it is to be rejected"),
            Ok(None) => panic!("an incomplete head"),
            Err(rejection) => rejection,
        }
    }

    fn offer(extensions: &str) -> Option<Option<u8>> {
        let request = GOOD.replace("\r\n\r\n", &format!("\r\nSec-WebSocket-Extensions: {extensions}\r\n\r\n"));
        let (head, _) = parse_head(request.as_bytes(), 8192).unwrap().unwrap();
        upgrade(&head).unwrap().deflate_offer.map(|params| params.server_max_window_bits)
    }

    #[test]
    fn the_rfcs_own_handshake_is_answered_as_it_says() {
        let (head, len) = parse_head(GOOD.as_bytes(), 8192).unwrap().unwrap();
        assert_eq!((head.method, head.path, head.query, head.version), ("GET", "/ws", "a=b", 1));
        assert_eq!(len, GOOD.len());
        let mut out = Vec::new();
        write_101(&mut out, &upgrade(&head).unwrap(), Some("chat"), true);
        assert_eq!(
            std::str::from_utf8(&out).unwrap(),
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: chat\r\n\r\n"
        );
    }

    #[test]
    fn a_head_in_pieces_is_waited_for_until_it_is_too_long() {
        for cut in 0..GOOD.len() {
            assert_eq!(parse_head(&GOOD.as_bytes()[..cut], 8192).map(|head| head.is_some()), Ok(false), "{cut}");
        }
        assert!(parse_head(GOOD.as_bytes(), GOOD.len()).unwrap().is_some());
        assert_eq!(parse_head(GOOD.as_bytes(), GOOD.len() - 1).unwrap_err().status, 431);
        assert_eq!(parse_head(&GOOD.as_bytes()[..100], 100).unwrap_err().status, 431);
        let many = GOOD.replace("\r\n\r\n", &format!("\r\n{}\r\n", "a: b\r\n".repeat(HEADERS_MAX)));
        assert_eq!(parse_head(many.as_bytes(), 8192).unwrap_err().status, 431);
    }

    #[test]
    fn what_follows_the_head_is_left_alone() {
        let mut bytes = GOOD.as_bytes().to_vec();
        bytes.extend_from_slice(&[0x81, 0x80, 1, 2, 3, 4]);
        assert_eq!(parse_head(&bytes, 8192).unwrap().unwrap().1, GOOD.len());
    }

    #[test]
    fn a_request_is_refused_with_the_status_and_text_of_what_is_wrong() {
        let without = |name: &str| {
            let start = GOOD.find(name).unwrap();
            let end = start + GOOD[start..].find("\r\n").unwrap() + 2;
            format!("{}{}", &GOOD[..start], &GOOD[end..])
        };
        for name in ["Host", "Upgrade", "Connection", "Sec-WebSocket-Key", "Sec-WebSocket-Version"] {
            let request = without(&format!("{name}:"));
            let expected = Rejection::new(400, format!("handshake error: bad \"{name}\" header"));
            assert_eq!(rejection(&request), expected);
        }
        for (good, bad, status, text) in [
            ("GET", "POST", 405, "handshake error: bad HTTP request method"),
            ("HTTP/1.1", "HTTP/1.0", 505, "handshake error: bad HTTP protocol version"),
            ("HTTP/1.1", "HTTP/2.0", 505, "handshake error: bad HTTP protocol version"),
            ("Host: gateway:9992", "Host:", 400, "handshake error: bad \"Host\" header"),
            ("websocket\r\n", "h2c\r\n", 400, "handshake error: bad \"Upgrade\" header"),
            ("keep-alive, Upgrade", "keep-alive, Upgraded", 400, "handshake error: bad \"Connection\" header"),
            ("ZQ==", "ZQ=", 400, "handshake error: bad \"Sec-WebSocket-Key\" header"),
            ("ZQ==", "ZQ==Z", 400, "handshake error: bad \"Sec-WebSocket-Key\" header"),
            ("ZQ==", "ZQQ=", 400, "handshake error: bad \"Sec-WebSocket-Key\" header"),
            ("dGhl", "d!hl", 400, "handshake error: bad \"Sec-WebSocket-Key\" header"),
            ("Version: 13", "Version:", 400, "handshake error: bad \"Sec-WebSocket-Version\" header"),
            ("Version: 13", "Version: 8", 426, "handshake error: bad \"Sec-WebSocket-Version\" header"),
        ] {
            let rejection = rejection(&GOOD.replacen(good, bad, 1));
            assert_eq!((rejection.status, rejection.body.as_ref()), (status, text), "{bad}");
        }
        for garbage in
            ["\x16\x03\x01\x02\n", "GET\r\n\r\n", "GET /ws\r\n\r\n", "GET /ws FTP/1.1\r\n\r\n", "a b c\r\n\r\n"]
        {
            assert_eq!(parse_head(garbage.as_bytes(), 8192).unwrap_err().status, 400, "{garbage:?}");
        }
    }

    #[test]
    fn a_header_that_may_come_once_is_refused_twice() {
        for header in ["Host: other", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13"] {
            let request = GOOD.replace("\r\n\r\n", &format!("\r\n{header}\r\n\r\n"));
            assert_eq!(rejection(&request).status, 400, "{header}");
        }
    }

    #[test]
    fn names_and_tokens_match_in_any_case_and_any_order() {
        let request = "GET http://gateway/ws?q#f HTTP/1.1\r\nsec-websocket-version: 13\r\nCONNECTION: upgrade , close\r\n\
                       upgrade: WebSocket\r\nhost: g\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
                       Sec-WebSocket-Protocol: a, b\r\nsec-websocket-protocol: c\r\nOrigin: https://x\r\n\r\n";
        let (head, _) = parse_head(request.as_bytes(), 8192).unwrap().unwrap();
        assert_eq!(head.path, "/ws");
        let upgrade = upgrade(&head).unwrap();
        assert_eq!(upgrade.subprotocols().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(upgrade.origin, Some("https://x"));
        assert_eq!(upgrade.deflate_offer, None);
    }

    #[test]
    fn a_rejection_is_a_whole_response() {
        let mut out = Vec::new();
        rejection(&GOOD.replace("Version: 13", "Version: 8")).write(&mut out);
        assert_eq!(
            std::str::from_utf8(&out).unwrap(),
            "HTTP/1.1 426 Upgrade Required\r\nContent-Type: text/plain; charset=utf-8\r\nSec-WebSocket-Version: 13\r\n\
             Content-Length: 51\r\nConnection: close\r\n\r\nhandshake error: bad \"Sec-WebSocket-Version\" header"
        );
    }

    #[test]
    fn the_first_offer_that_leaves_the_window_alone_is_taken() {
        assert_eq!(offer("permessage-deflate"), Some(None));
        assert_eq!(offer("permessage-deflate; client_max_window_bits"), Some(None));
        assert_eq!(offer("x, permessage-deflate; client_max_window_bits=\"10\""), Some(None));
        assert_eq!(offer("permessage-deflate; server_max_window_bits=15"), Some(Some(15)));
        assert_eq!(offer("permessage-deflate;server_max_window_bits = 9 ;server_no_context_takeover"), Some(Some(9)));
        assert_eq!(offer("permessage-deflate; server_max_window_bits=9, permessage-deflate"), Some(None));
        assert_eq!(
            offer("permessage-deflate; server_max_window_bits=9, permessage-deflate; server_max_window_bits=8"),
            Some(Some(9))
        );
    }

    #[test]
    fn an_offer_that_is_not_understood_is_passed_over() {
        for bad in [
            "permessage-bzip2",
            "permessage-deflate; surprise",
            "permessage-deflate; server_no_context_takeover=1",
            "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
            "permessage-deflate; client_max_window_bits; client_max_window_bits=9",
            "permessage-deflate; client_max_window_bits=7",
            "permessage-deflate; client_max_window_bits=\"",
            "permessage-deflate; server_max_window_bits",
            "permessage-deflate; server_max_window_bits=09",
            "permessage-deflate; server_max_window_bits=16",
            "permessage-deflate; server_max_window_bits=9; server_max_window_bits=9",
            "permessage-deflate; \"a, permessage-deflate\"",
        ] {
            assert_eq!(offer(bad), None, "{bad}");
            assert_eq!(
                offer(&format!("{bad}, permessage-deflate")),
                Some(None).filter(|_| !bad.ends_with("=\"")),
                "{bad}"
            );
        }
    }

    #[test]
    fn the_answer_names_what_was_agreed_and_nothing_where_nothing_was() {
        let answer = |extensions: &str, deflate: bool| {
            let request = GOOD.replace("\r\n\r\n", &format!("\r\nSec-WebSocket-Extensions: {extensions}\r\n\r\n"));
            let (head, _) = parse_head(request.as_bytes(), 8192).unwrap().unwrap();
            let mut out = Vec::new();
            write_101(&mut out, &upgrade(&head).unwrap(), None, deflate);
            let (status, len, headers) = parse_response(&out).unwrap().unwrap();
            assert_eq!((status, len), (101, out.len()));
            let extensions = headers.iter().find(|(name, _)| *name == "Sec-WebSocket-Extensions");
            extensions.map(|(_, value)| String::from_utf8(value.to_vec()).unwrap())
        };
        let plain = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
        assert_eq!(answer("permessage-deflate; client_max_window_bits", true).unwrap(), plain);
        assert_eq!(
            answer("permessage-deflate; server_max_window_bits=10", true).unwrap(),
            format!("{plain}; server_max_window_bits=10")
        );
        assert_eq!(answer("permessage-deflate", false), None);
        assert_eq!(answer("permessage-bzip2", true), None);
    }

    #[test]
    fn a_clients_request_is_one_that_we_accept() {
        let mut out = Vec::new();
        write_request(&mut out, "127.0.0.1:9992", "/ws", KEY, &[("Origin", "x")]);
        let (head, len) = parse_head(&out, 8192).unwrap().unwrap();
        assert_eq!(len, out.len());
        let upgrade = upgrade(&head).unwrap();
        assert_eq!(upgrade.accept, accept_for(KEY));
        assert_eq!(&accept_for(KEY), b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(upgrade.origin, Some("x"));
        assert_eq!(parse_response(b"HTTP/1.1 101 Sw"), Ok(None));
        assert!(parse_response(b"SSH-2.0\r\n\r\n").is_err());
    }
}
