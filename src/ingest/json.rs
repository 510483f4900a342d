//! The body of `POST /v1/pushData`: the JSON form of `order.Data`, read as protojson reads it (protobuf's JSON mapping), so that
//! what gpush's HTTP port takes is taken here.
//!
//! Known fields: `uid` and `topic` strings, `data` base64 in either alphabet, padding optional, line breaks ignored. `null`
//! counts as absent, unknown fields are skipped, a field given twice is an error.

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use std::borrow::Cow;
use std::fmt;

/// The fields of `order.Data`; absent ones are empty.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct PushBody<'a> {
    /// Whose connections.
    pub uid: Cow<'a, str>,
    /// Which topic.
    pub topic: Cow<'a, str>,
    /// The payload, decoded.
    pub data: Vec<u8>,
}

/// Reads one body. Nothing but white space counts as `{}`.
///
/// # Errors
/// A line for the publisher: what is wrong, and where.
pub(super) fn parse(body: &[u8]) -> Result<PushBody<'_>, String> {
    if body.trim_ascii().is_empty() {
        return Ok(PushBody::default());
    }
    let mut json = serde_json::Deserializer::from_slice(body);
    let push = json.deserialize_map(Fields).map_err(|e| e.to_string())?;
    // One object a request: to publish the first of several and answer 200 would swallow the others.
    json.end().map_err(|e| e.to_string())?;
    Ok(push)
}

struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = PushBody<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(r#"an object {"uid": string, "topic": string, "data": base64}"#)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<PushBody<'de>, A::Error> {
        let (mut uid, mut topic, mut data) = (None, None, None);
        while let Some(key) = map.next_key_seed(Text)? {
            match key.as_deref().unwrap_or_default() {
                "uid" => once("uid", &mut uid, map.next_value_seed(Text)?)?,
                "topic" => once("topic", &mut topic, map.next_value_seed(Text)?)?,
                "data" => once("data", &mut data, map.next_value_seed(Base64)?)?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(PushBody { uid: uid.unwrap_or_default(), topic: topic.unwrap_or_default(), data: data.unwrap_or_default() })
    }
}

/// Sets a field that may be set once. `null` is not set, so it may stand beside a value, as in protojson.
fn once<T, E: Error>(name: &'static str, field: &mut Option<T>, value: Option<T>) -> Result<(), E> {
    if field.is_some() && value.is_some() {
        return Err(E::duplicate_field(name));
    }
    if value.is_some() {
        *field = value;
    }
    Ok(())
}

/// A string, borrowed from the body if it has no escapes, or null.
struct Text;

impl<'de> DeserializeSeed<'de> for Text {
    type Value = Option<Cow<'de, str>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Text {
    type Value = Option<Cow<'de, str>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Some(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Some(Cow::Owned(text.to_owned())))
    }
}

/// A string of base64, or null.
struct Base64;

impl<'de> DeserializeSeed<'de> for Base64 {
    type Value = Option<Vec<u8>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for Base64 {
    type Value = Option<Vec<u8>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string of base64")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        decode(text).map(Some).map_err(|e| E::custom(format_args!("data is not base64: {e}")))
    }
}

const fn engine(alphabet: &alphabet::Alphabet, padding: DecodePaddingMode) -> GeneralPurpose {
    let config = GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true).with_decode_padding_mode(padding);
    GeneralPurpose::new(alphabet, config)
}

// As Go's encoding/base64, which protojson calls: the padding is all there or not at all, spare bits are not looked at.
static STANDARD: GeneralPurpose = engine(&alphabet::STANDARD, DecodePaddingMode::RequireCanonical);
static STANDARD_BARE: GeneralPurpose = engine(&alphabet::STANDARD, DecodePaddingMode::RequireNone);
static URL: GeneralPurpose = engine(&alphabet::URL_SAFE, DecodePaddingMode::RequireCanonical);
static URL_BARE: GeneralPurpose = engine(&alphabet::URL_SAFE, DecodePaddingMode::RequireNone);

fn decode(text: &str) -> Result<Vec<u8>, base64::DecodeError> {
    let mut text = Cow::Borrowed(text.as_bytes());
    if text.iter().any(|b| matches!(b, b'\r' | b'\n')) {
        text.to_mut().retain(|b| !matches!(b, b'\r' | b'\n'));
    }
    let url = text.iter().any(|b| matches!(b, b'-' | b'_'));
    let engine = match (url, text.len() % 4 == 0) {
        (false, true) => &STANDARD,
        (false, false) => &STANDARD_BARE,
        (true, true) => &URL,
        (true, false) => &URL_BARE,
    };
    engine.decode(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(json: &str) -> Result<Vec<u8>, String> {
        parse(json.as_bytes()).map(|p| p.data)
    }

    #[test]
    fn the_sheets_example_is_read() {
        let push = parse(r#"{"uid":"123456","topic":"test","data":"5pWw5o2u"}"#.as_bytes()).unwrap();
        assert_eq!((&*push.uid, &*push.topic, push.data.as_slice()), ("123456", "test", "数据".as_bytes()));
    }

    #[test]
    fn nothing_is_an_object_without_fields() {
        for body in ["", " \r\n", "{}", r#"{"uid":null,"topic":null,"data":null}"#] {
            assert_eq!(parse(body.as_bytes()).unwrap(), PushBody::default(), "{body:?}");
        }
    }

    #[test]
    fn base64_comes_in_both_alphabets_padded_or_not() {
        let bytes = [0xfb, 0xef, 0xff, 0x61];
        for text in ["++//YQ==", "++//YQ", "--__YQ==", "--__YQ", r"++\/\/YQ==", r"++//\nYQ==\r\n", "++//YR=="] {
            assert_eq!(data(&format!(r#"{{"data":"{text}"}}"#)).unwrap(), bytes, "{text}");
        }
        assert_eq!(data(r#"{"data":""}"#).unwrap(), b"");
    }

    #[test]
    fn what_is_not_base64_is_refused() {
        for text in ["+-//YQ==", "YQ=", "Y", "=", "YQ==YQ==", "Y Q==", "数据"] {
            let error = data(&format!(r#"{{"data":"{text}"}}"#)).unwrap_err();
            assert!(error.contains("not base64"), "{text}: {error}");
        }
    }

    #[test]
    fn unknown_fields_are_skipped_and_known_ones_come_once() {
        let push = parse(br#"{"x":{"topic":["y"]},"x":1,"to\u0070ic":"a\nb","@type":"order.Data"}"#).unwrap();
        assert_eq!(push.topic, "a\nb");
        assert!(parse(br#"{"topic":"a","topic":"a"}"#).unwrap_err().contains("duplicate field `topic`"));
        assert_eq!(parse(br#"{"topic":null,"topic":"a","topic":null}"#).unwrap().topic, "a");
    }

    #[test]
    fn everything_else_is_refused() {
        for body in [
            "null",
            "[]",
            r#""topic""#,
            "{",
            r#"{"topic":1}"#,
            r#"{"uid":1}"#,
            r#"{"data":1}"#,
            r#"{"data":[97]}"#,
            r#"{"topic":"a"}{"topic":"b"}"#,
            r#"{"topic":"a"} x"#,
            r#"{"topic":"\ud800"}"#,
            r#"{topic:"a"}"#,
            "{\"topic\":\"\u{1}\"}",
        ] {
            assert!(parse(body.as_bytes()).is_err(), "{body}");
        }
        assert!(parse(b"{\"topic\":\"\xff\"}").is_err());
    }

    #[test]
    fn nesting_costs_no_stack() {
        let (open, close) = ("[".repeat(1_000_000), "]".repeat(1_000_000));
        assert!(parse(format!("{{\"x\":{open}").as_bytes()).is_err());
        assert_eq!(parse(format!("{{\"x\":{open}{close}}}").as_bytes()).unwrap(), PushBody::default());
    }
}
