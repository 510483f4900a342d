//! Any payload as one JSON value: what dialects need whose envelope is JSON, and whose publications may come from anywhere.
//!
//! JSON stays what it is, without the white space between its tokens, as Go's `json.Marshal` treats a `json.RawMessage`: numbers
//! keep their spelling and objects the order of their members. Anything else becomes a JSON string.

use crate::config::JSON_GROWTH_MAX;
use serde::de::IgnoredAny;

/// Whether `<`, `>`, `&`, U+2028 and U+2029 are written as `\u003c` and so on, as Go does by default (its `SetEscapeHTML`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Html {
    /// As `\u003c`.
    Escaped,
    /// As they are.
    Verbatim,
}

/// Appends `data` to `out` as one JSON value. At most [`GROWTH_MAX`] times as long as `data`, and two quotes.
///
/// # Panics
/// If `data` is not UTF-8: a publication is, its admission saw to it.
pub fn append(data: &[u8], html: Html, out: &mut Vec<u8>) {
    let text = std::str::from_utf8(data).expect("a publication is UTF-8");
    if is_json(text) { compact(data, html, out) } else { append_string(text, html, out) }
}

/// How many bytes one byte of a payload becomes at most: `\u0000`.
pub const GROWTH_MAX: usize = JSON_GROWTH_MAX;

/// Whether `text` is one JSON value and nothing else. Nesting is not bounded; the check takes no stack for it.
pub fn is_json(text: &str) -> bool {
    serde_json::from_str::<IgnoredAny>(text).is_ok()
}

/// Appends `text` as a JSON string.
pub fn append_string(text: &str, html: Html, out: &mut Vec<u8>) {
    out.push(b'"');
    let bytes = text.as_bytes();
    let mut start = 0; // Of what is not copied yet.
    for (i, &byte) in bytes.iter().enumerate() {
        let short = match byte {
            b'"' => b'"',
            b'\\' => b'\\',
            b'\n' => b'n',
            b'\r' => b'r',
            b'\t' => b't',
            0x08 => b'b',
            0x0C => b'f',
            0..0x20 => 0,
            _ => match separates(bytes, i, html) {
                None => continue,
                Some(escape) => {
                    out.extend_from_slice(&bytes[start..i]);
                    out.extend_from_slice(escape.text);
                    start = i + escape.len;
                    continue;
                }
            },
        };
        out.extend_from_slice(&bytes[start..i]);
        start = i + 1;
        match short {
            0 => out.extend_from_slice(&[b'\\', b'u', b'0', b'0', hex(byte >> 4), hex(byte & 15)]),
            short => out.extend_from_slice(&[b'\\', short]),
        }
    }
    out.extend_from_slice(&bytes[start..]);
    out.push(b'"');
}

/// Appends valid JSON without the white space between its tokens.
fn compact(json: &[u8], html: Html, out: &mut Vec<u8>) {
    let mut in_string = false;
    let mut escaped = false;
    let mut start = 0; // Of what is not copied yet.
    for (i, &byte) in json.iter().enumerate() {
        if !in_string {
            in_string = byte == b'"';
            if byte.is_ascii_whitespace() {
                out.extend_from_slice(&json[start..i]);
                start = i + 1;
            }
            continue;
        }
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => in_string = false,
            _ => {
                if let Some(escape) = separates(json, i, html) {
                    out.extend_from_slice(&json[start..i]);
                    out.extend_from_slice(escape.text);
                    start = i + escape.len;
                }
            }
        }
    }
    out.extend_from_slice(&json[start..]);
}

/// What stands for a character of a string, and how many bytes that one has.
struct Escape {
    text: &'static [u8],
    len: usize,
}

/// What the character at `i` becomes so that HTML and JavaScript can't mistake it; none if it stays.
fn separates(bytes: &[u8], i: usize, html: Html) -> Option<Escape> {
    if html == Html::Verbatim {
        return None;
    }
    match bytes[i] {
        b'<' => Some(Escape { text: b"\\u003c", len: 1 }),
        b'>' => Some(Escape { text: b"\\u003e", len: 1 }),
        b'&' => Some(Escape { text: b"\\u0026", len: 1 }),
        0xE2 if bytes[i + 1..].starts_with(&[0x80, 0xA8]) => Some(Escape { text: b"\\u2028", len: 3 }),
        0xE2 if bytes[i + 1..].starts_with(&[0x80, 0xA9]) => Some(Escape { text: b"\\u2029", len: 3 }),
        _ => None,
    }
}

fn hex(digit: u8) -> u8 {
    b"0123456789abcdef"[usize::from(digit)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(data: &str, html: Html) -> String {
        let mut out = Vec::new();
        append(data.as_bytes(), html, &mut out);
        assert!(out.len() <= GROWTH_MAX * data.len() + 2);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn json_stays_as_it_is_without_the_white_space_between_its_tokens() {
        for (data, expected) in [
            (r#"{"b": 1, "a" : [ 1.50, -0, 1E5 ], "b":2}"#, r#"{"b":1,"a":[1.50,-0,1E5],"b":2}"#),
            (" \t\r\n\"a b\\\" \\\\\" \n", r#""a b\" \\""#),
            ("null", "null"),
            (" true ", "true"),
            (r#""\ud800 \u003C \/""#, r#""\ud800 \u003C \/""#),
            ("12345678901234567890123", "12345678901234567890123"),
        ] {
            for html in [Html::Escaped, Html::Verbatim] {
                assert_eq!(value(data, html), expected, "{data}");
            }
        }
    }

    #[test]
    fn what_html_could_mistake_is_escaped_in_strings_of_either_kind() {
        let json = "{\"<a>\": \"&\u{2028}\u{2029}\u{2027}\u{20a8}é\"}";
        let text = "<a>&\u{2028}\u{2029}\u{2027}é";
        assert_eq!(value(json, Html::Escaped), "{\"\\u003ca\\u003e\":\"\\u0026\\u2028\\u2029\u{2027}\u{20a8}é\"}");
        assert_eq!(value(text, Html::Escaped), "\"\\u003ca\\u003e\\u0026\\u2028\\u2029\u{2027}é\"");
        assert_eq!(value(text, Html::Verbatim), format!("\"{text}\""));
        assert_eq!(value("\"<\"", Html::Verbatim), "\"<\"");
    }

    #[test]
    fn what_is_not_json_becomes_a_string_that_reads_back_as_it_was() {
        for data in [
            "",
            "hello, 世界",
            "{",
            "1 2",
            "01",
            "nul",
            "\"open",
            "'a'",
            "a\"b\\c/d",
            "\u{0}\u{1}\u{8}\u{c}\n\r\t\u{1f}\u{7f}",
            "<\u{2028}>",
            "\u{feff}1",
        ] {
            for html in [Html::Escaped, Html::Verbatim] {
                let shown = value(data, html);
                assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), data, "{shown}");
            }
        }
        assert_eq!(
            value("\u{0}\u{8}\u{c}\n\r\t\u{1f}\u{7f}", Html::Escaped),
            "\"\\u0000\\b\\f\\n\\r\\t\\u001f\u{7f}\""
        );
    }

    #[test]
    fn deep_nesting_takes_no_stack() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(value(&deep, Html::Escaped), deep);
        assert!(!is_json(&deep[1..]));
    }
}
