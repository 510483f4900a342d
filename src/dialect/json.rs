//! Payloads inside JSON envelopes: what is JSON goes in as it is, anything else as a JSON string.

use serde::de::IgnoredAny;

/// Appends `data` to `out` as one JSON value that holds no line break.
///
/// JSON keeps its own spelling (RFC 8259), but for line breaks and the white space around it: a line break in JSON can only stand
/// between two tokens. Anything else becomes a JSON string of the same text. Costs a pass over `data` to tell the two apart, and
/// one to copy it.
pub fn append_value(data: &[u8], out: &mut Vec<u8>) {
    if serde_json::from_slice::<IgnoredAny>(data).is_ok() {
        for line in data.trim_ascii().split(|b| matches!(b, b'\n' | b'\r')) {
            out.extend_from_slice(line);
        }
    } else {
        // Admission takes UTF-8 alone, so nothing is replaced here.
        append_string(&String::from_utf8_lossy(data), out);
    }
}

/// Appends `text` to `out` as a JSON string.
pub fn append_string(text: &str, out: &mut Vec<u8>) {
    serde_json::to_writer(out, text).expect("memory takes what is written to it");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(data: impl AsRef<[u8]>) -> String {
        let mut out = b"before:".to_vec();
        append_value(data.as_ref(), &mut out);
        String::from_utf8(out).unwrap().strip_prefix("before:").unwrap().to_owned()
    }

    #[test]
    fn json_keeps_its_spelling() {
        for json in [
            r#"{"a": 1.50, "b":[true,null], "a":"\u00e9\n"}"#,
            "0",
            "-1e400",
            "\"text\"",
            "null",
            "[]",
            "\"数据\"",
            "123456789012345678901234567890",
        ] {
            assert_eq!(value(json), json);
        }
    }

    #[test]
    fn line_breaks_between_tokens_go_and_those_in_strings_are_escapes_anyway() {
        assert_eq!(value("\r\n{\n  \"a\": \"x\\ny\",\r\n\t\"b\": 1\n}\n"), "{  \"a\": \"x\\ny\",\t\"b\": 1}");
        assert_eq!(value(" 1 "), "1");
        let deep = "[\n".repeat(10_000) + &"]".repeat(10_000);
        assert_eq!(value(&deep), deep.replace('\n', ""), "however deep");
    }

    #[test]
    fn anything_else_becomes_a_string_of_the_same_text() {
        for text in [
            "",
            " ",
            "hello",
            "{",
            "{}{}",
            "01",
            "'a'",
            "NaN",
            "a\n\"b\"\\",
            "\u{feff}{}",
            "价格 1",
            "{\"a\":\"x\ny\"}",
            "\u{c}1",
        ] {
            let string = value(text);
            assert!(!string.contains('\n'), "{string}");
            assert_eq!(serde_json::from_str::<String>(&string).unwrap(), text);
        }
    }
}
