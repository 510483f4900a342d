//! Bodies as go-push's publishers send them: `room=r&items=[…]`, read as Go's `ParseForm` does.
//!
//! A body may be 10 MB of whatever is dearest to read, on the thread that all publishers share: it is read in pieces of [`PIECE_BYTES`],
//! between which the others get their turn, and its items are never all in a list.

use bytes::Bytes;
use serde_json::value::RawValue;

/// Largest body, Go's own bound for forms; a larger one counts as none.
pub(super) const FORM_BYTES_MAX: usize = 10 << 20;

/// Bytes read in one go.
const PIECE_BYTES: usize = 65_536;

/// What JSON calls white space.
const SPACE: [char; 4] = [' ', '\t', '\r', '\n'];

/// Lets others have their turn after each [`PIECE_BYTES`] of work.
#[derive(Default)]
struct Turns {
    bytes: usize,
}

impl Turns {
    async fn read(&mut self, bytes: usize) {
        self.bytes += bytes;
        if self.bytes >= PIECE_BYTES {
            self.bytes = 0;
            tokio::task::yield_now().await;
        }
    }
}

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
    pub(super) async fn parse(body: &[u8]) -> Option<Form> {
        let (mut room, mut items, mut turns) = (None, None, Turns::default());
        for pair in body.split(|b| *b == b'&') {
            turns.read(1).await;
            if pair.contains(&b';') {
                return None; // Go takes no `;` between fields any more, and no unescaped one within.
            }
            let (name, value) = match pair.iter().position(|b| *b == b'=') {
                Some(at) => (&pair[..at], &pair[at + 1..]),
                None => (pair, &b""[..]),
            };
            let (name, value) = (unescape(name, &mut turns).await?, unescape(value, &mut turns).await?);
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
async fn unescape(text: &[u8], turns: &mut Turns) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.iter();
    while !rest.as_slice().is_empty() {
        let piece_end = rest.len().saturating_sub(PIECE_BYTES);
        turns.read(rest.len() - piece_end).await;
        while rest.len() > piece_end
            && let Some(&byte) = rest.next()
        {
            bytes.push(match byte {
                b'+' => b' ',
                b'%' => {
                    let digit = |b: Option<&u8>| char::from(*b?).to_digit(16);
                    (digit(rest.next())? * 16 + digit(rest.next())?) as u8
                }
                byte => byte,
            });
        }
    }
    Some(String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
}

/// How many items an array has. None if it is none, or malformed anywhere; `null` is an empty one.
pub(super) async fn count(json: &str) -> Option<usize> {
    let (mut count, mut turns) = (0, Turns::default());
    for item in Items::of(json) {
        turns.read(item.ok()?.get().len() + 1).await;
        count += 1;
    }
    Some(count)
}

/// It is no array of JSON.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// The items of an array, one by one, each with the bytes it was sent with. What is malformed is told when it is come to, and is the end.
pub(super) struct Items<'a> {
    rest: &'a str,
    at: At,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    Begin,
    First,
    Next,
    End,
}

impl<'a> Items<'a> {
    pub(super) fn of(json: &'a str) -> Items<'a> {
        Items { rest: json, at: At::Begin }
    }

    fn step(&mut self) -> Result<Option<&'a RawValue>, Malformed> {
        if self.at == At::Begin {
            if self.rest.trim_matches(SPACE) == "null" {
                return Ok(None);
            }
            self.rest = self.rest.trim_start_matches(SPACE).strip_prefix('[').ok_or(Malformed)?;
            self.at = At::First;
        }
        let rest = self.rest.trim_start_matches(SPACE);
        if let Some(behind) = rest.strip_prefix(']') {
            return if behind.trim_start_matches(SPACE).is_empty() { Ok(None) } else { Err(Malformed) };
        }
        let rest = if self.at == At::First { rest } else { rest.strip_prefix(',').ok_or(Malformed)? };
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<&RawValue>();
        let item = values.next().ok_or(Malformed)?.map_err(|_| Malformed)?;
        (self.rest, self.at) = (&rest[values.byte_offset()..], At::Next);
        Ok(Some(item))
    }
}

impl<'a> Iterator for Items<'a> {
    type Item = Result<&'a RawValue, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at == At::End {
            return None;
        }
        let item = self.step().transpose();
        if !matches!(item, Some(Ok(_))) {
            self.at = At::End;
        }
        item
    }
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

    /// What comes of it, and how often others had their turn.
    fn run<T>(future: impl Future<Output = T>) -> (T, usize) {
        let mut future = std::pin::pin!(future);
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let mut turns = 0;
        loop {
            if let std::task::Poll::Ready(result) = future.as_mut().poll(&mut context) {
                return (result, turns);
            }
            turns += 1;
        }
    }

    fn parse(body: &str) -> Option<(String, String)> {
        run(Form::parse(body.as_bytes())).0.map(|form| (form.room, form.items))
    }

    #[test]
    fn others_have_their_turn_whatever_a_large_body_is_made_of() {
        const BYTES: usize = 4 << 20;
        for part in ["x", "&", "a&", "%41", "+", "=&"] {
            let (form, turns) = run(Form::parse(part.repeat(BYTES / part.len()).as_bytes()));
            assert!(form.is_some() && turns >= BYTES / PIECE_BYTES / 3, "{part}: {turns}");
        }
        let many = format!("[{}1]", "1,".repeat(BYTES / 2));
        let (items, turns) = run(count(&many));
        assert_eq!(items, Some(BYTES / 2 + 1));
        assert!(turns >= BYTES / PIECE_BYTES, "{turns}");
    }

    #[test]
    fn an_escape_across_two_pieces_is_one() {
        for at in PIECE_BYTES - 3..=PIECE_BYTES {
            let (before, after) = ("x".repeat(at), "y".repeat(PIECE_BYTES));
            let read = parse(&format!("items={before}%41{after}")).unwrap().1;
            assert!(read == format!("{before}A{after}"), "at {at}");
            assert_eq!(parse(&format!("items={before}%4")), None);
        }
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
        let shown = |json| {
            let items: Option<Vec<String>> = Items::of(json).map(|item| Some(item.ok()?.get().to_owned())).collect();
            assert_eq!(run(count(json)).0, items.as_ref().map(Vec::len), "{json}");
            let whole = serde_json::from_str::<Option<Vec<&RawValue>>>(json).ok().map(Option::unwrap_or_default);
            assert_eq!(items.is_some(), whole.is_some(), "as if it were read in one piece: {json}");
            items
        };
        assert_eq!(
            shown(r#" [ {"b": 1, "a":2} , 1.50,"x",null ] "#).unwrap(),
            [r#"{"b": 1, "a":2}"#, "1.50", "\"x\"", "null"]
        );
        assert_eq!(shown("[]").unwrap(), [""; 0]);
        assert_eq!(shown("null").unwrap(), [""; 0]);
        for json in [
            "",
            " ",
            "{}",
            "1",
            "[",
            "[1",
            "[1],",
            "\"[]\"",
            "[1 2]",
            "[,1]",
            "[1,]",
            "[,]",
            "[1,,2]",
            "[1:2]",
            "[01]",
            "[nul]",
            "[1]]",
            "[\"a\"\"b\"]",
            "[{]}",
            "nulls",
            "[null",
            "[\"\\x\"]",
            "\u{a0}[]",
            "[\u{a0}1]",
        ] {
            assert_eq!(shown(json), None, "{json}");
        }
    }

    #[test]
    fn a_body_reads_back_as_it_was_meant() {
        for (room, items) in [(Some("a b&c=%+;世"), r#"{"x":"<&;+%\u2028"},2"#), (None, "1")] {
            let form = run(Form::parse(&body(room, items))).0.unwrap();
            assert_eq!((form.room.as_str(), form.items), (room.unwrap_or_default(), format!("[{items}]")));
        }
    }
}
