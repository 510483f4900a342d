//! Bodies as go-push's publishers send them: `room=r&items=[…]`, read as Go's `ParseForm` does.

use bytes::Bytes;
use serde_json::value::RawValue;

/// Largest body, Go's own bound for forms; a larger one counts as none.
pub(super) const FORM_BYTES_MAX: usize = 10 << 20;

/// What one body says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Form {
    /// The first `room`.
    pub room: String,
    /// The first `items`.
    pub items: String,
}

impl Form {
    /// Reads a body; `None` if any of it is malformed, which go-push answers by doing nothing.
    pub(super) fn parse(body: &[u8]) -> Option<Form> {
        let (mut room, mut items) = (None, None);
        for pair in body.split(|b| *b == b'&').filter(|pair| !pair.is_empty()) {
            if pair.contains(&b';') {
                return None; // Go takes no `;` between fields any more, and no unescaped one within.
            }
            let (name, value) = match pair.iter().position(|b| *b == b'=') {
                Some(at) => (&pair[..at], &pair[at + 1..]),
                None => (pair, &b""[..]),
            };
            let (name, value) = (unescape(name)?, unescape(value)?);
            match name.as_str() {
                "room" => drop(room.get_or_insert(value)),
                "items" => drop(items.get_or_insert(value)),
                _ => {}
            }
        }
        Some(Form { room: room.unwrap_or_default(), items: items.unwrap_or_default() })
    }
}

/// Undoes percent-encoding; what is not UTF-8 becomes U+FFFD. `None`: a `%` without two digits.
fn unescape(text: &[u8]) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.iter();
    while let Some(&byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digit = |b: Option<&u8>| char::from(*b?).to_digit(16);
                (digit(rest.next())? * 16 + digit(rest.next())?) as u8
            }
            byte => byte,
        });
    }
    Some(String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
}

/// The items of an array, each with the bytes it was sent with. None if it is no array; `null` is an empty one.
pub(super) fn items(json: &str) -> Option<Vec<&RawValue>> {
    serde_json::from_str::<Option<Vec<&RawValue>>>(json).ok().map(Option::unwrap_or_default)
}

/// A body for another gateway.
pub(super) fn body(room: Option<&str>, items: &str) -> Bytes {
    let mut out = Vec::with_capacity(items.len() + items.len() / 2 + 64);
    if let Some(room) = room {
        out.extend_from_slice(b"room=");
        escape(room, &mut out);
        out.push(b'&');
    }
    out.extend_from_slice(b"items=");
    escape("[", &mut out);
    escape(items, &mut out);
    escape("]", &mut out);
    out.into()
}

fn escape(text: &str, out: &mut Vec<u8>) {
    for &byte in text.as_bytes() {
        match byte {
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'.' | b'_' | b'~' => out.push(byte),
            b' ' => out.push(b'+'),
            byte => {
                let hex = |digit: u8| b"0123456789ABCDEF"[usize::from(digit)];
                out.extend_from_slice(&[b'%', hex(byte >> 4), hex(byte & 15)]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &str) -> Option<(String, String)> {
        Form::parse(body.as_bytes()).map(|form| (form.room, form.items))
    }

    #[test]
    fn fields_are_read_as_curl_and_browsers_send_them() {
        let of = |room: &str, items: &str| Some((room.to_owned(), items.to_owned()));
        assert_eq!(
            parse(r#"room=default&items=[{"msg": "hi"},{"msg": "bye"}]"#),
            of("default", r#"[{"msg": "hi"},{"msg": "bye"}]"#)
        );
        assert_eq!(parse("items=%5B%22a+b%26%E4%B8%96%22%5D&x=1"), of("", "[\"a b&世\"]"));
        assert_eq!(parse("items=1&items=2&room=&room=r"), of("", "1"));
        assert_eq!(parse("&&r%6fom=r&flag"), of("r", ""));
        assert_eq!(parse(""), of("", ""));
        assert_eq!(parse("items=%ff"), of("", "\u{fffd}"));
    }

    #[test]
    fn one_malformed_field_spoils_the_body() {
        for body in ["items=[1]&x=%", "items=[1]&x=%4", "items=[1]&x=%zz", "room=r;items=[1]", "%=1"] {
            assert_eq!(parse(body), None, "{body}");
        }
    }

    #[test]
    fn items_keep_their_bytes_and_anything_but_an_array_has_none() {
        let shown = |json| items(json).map(|items| items.iter().map(|i| i.get().to_owned()).collect::<Vec<_>>());
        assert_eq!(
            shown(r#" [ {"b": 1, "a":2} , 1.50,"x",null ] "#).unwrap(),
            [r#"{"b": 1, "a":2}"#, "1.50", "\"x\"", "null"]
        );
        assert_eq!(shown("[]").unwrap(), [""; 0]);
        assert_eq!(shown("null").unwrap(), [""; 0]);
        for json in ["", "{}", "1", "[1", "[1],", "\"[]\""] {
            assert_eq!(shown(json), None, "{json}");
        }
    }

    #[test]
    fn a_body_reads_back_as_it_was_meant() {
        for (room, items) in [(Some("a b&c=%+;世"), r#"{"x":"<&;+%\u2028"},2"#), (None, "1")] {
            let form = Form::parse(&body(room, items)).unwrap();
            assert_eq!((form.room.as_str(), form.items), (room.unwrap_or_default(), format!("[{items}]")));
        }
    }
}
