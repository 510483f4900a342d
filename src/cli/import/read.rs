//! Files of others as flat lists of keys, each with its place. TOML and JSON are told apart by how they begin; names of sections
//! and keys are kept as they are written and matched in any case by the rules.

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Sections within sections; what lies deeper is one value.
const DEPTH_MAX: usize = 4;

/// One key of a file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Found {
    /// As written, sections first: `connection.TimeOut`.
    pub(super) path: String,
    /// `FILE:LINE`.
    pub(super) place: String,
    pub(super) value: toml::Value,
}

/// All keys of `text` in their order; one that is null is as if it were not there.
///
/// # Errors
/// It is neither TOML nor a JSON object; with its place.
pub(super) fn keys(file: &str, text: &str) -> Result<Vec<Found>, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut found = Vec::new();
    if text.trim_start().starts_with('{') {
        json(&Source { file, text }, "", text, DEPTH_MAX, &mut found)?;
    } else {
        let source = Source { file, text };
        let table = DeTable::parse(text).map_err(|e| {
            let place = e.span().map_or_else(|| file.to_owned(), |span| source.place(span.start));
            format!("{place}: this is not TOML: {}", e.message())
        })?;
        toml(&source, "", table.get_ref(), DEPTH_MAX, &mut found);
    }
    Ok(found)
}

/// A file and its text, to tell places by.
struct Source<'a> {
    file: &'a str,
    text: &'a str,
}

impl Source<'_> {
    fn place(&self, start: usize) -> String {
        format!("{}:{}", self.file, 1 + self.text.as_bytes()[..start].iter().filter(|b| **b == b'\n').count())
    }
}

fn joined(section: &str, key: &str) -> String {
    if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") }
}

fn toml(source: &Source<'_>, section: &str, table: &DeTable<'_>, depth: usize, found: &mut Vec<Found>) {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start); // The parser sorts by name.
    for (key, value) in entries {
        let path = joined(section, key.get_ref());
        match value.get_ref() {
            DeValue::Table(table) if depth > 0 => toml(source, &path, table, depth - 1, found),
            _ => found.push(Found { path, place: source.place(key.span().start), value: plain(value) }),
        }
    }
}

fn plain(value: &Spanned<DeValue<'_>>) -> toml::Value {
    match value.get_ref() {
        DeValue::String(text) => toml::Value::String(text.to_string()),
        DeValue::Boolean(b) => toml::Value::Boolean(*b),
        DeValue::Integer(n) => match i64::from_str_radix(n.as_str(), n.radix()) {
            Ok(n) => toml::Value::Integer(n),
            Err(_) => toml::Value::Float(f64::INFINITY), // Beyond any range.
        },
        DeValue::Float(n) => toml::Value::Float(n.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Datetime(moment) => toml::Value::Datetime(*moment),
        DeValue::Array(items) => toml::Value::Array(items.iter().map(plain).collect()),
        DeValue::Table(table) => {
            toml::Value::Table(table.iter().map(|(k, v)| (k.get_ref().to_string(), plain(v))).collect())
        }
    }
}

/// `part` is a slice of `source.text`, which is how places are known.
fn json(source: &Source<'_>, section: &str, part: &str, depth: usize, found: &mut Vec<Found>) -> Result<(), String> {
    let broken = |e: serde_json::Error, part: &str| {
        let text = e.to_string();
        let text = text.split(" at line ").next().unwrap_or_default();
        let before = part.split_inclusive('\n').take(e.line().saturating_sub(1)).map(str::len).sum::<usize>();
        let at = offset(source.text, part) + before.min(part.len());
        format!("{}:{}: this is not JSON: {text}", source.place(at), e.column())
    };
    let Members(members) = serde_json::from_str(part).map_err(|e| broken(e, part))?;
    for (key, raw) in members {
        let path = joined(section, &key);
        let value = raw.get();
        if value.starts_with('{') && depth > 0 {
            json(source, &path, value, depth - 1, found)?;
            continue;
        }
        let value: serde_json::Value = serde_json::from_str(value).map_err(|e| broken(e, value))?;
        if let Some(value) = from_json(value) {
            found.push(Found { path, place: source.place(offset(source.text, raw.get())), value });
        }
    }
    Ok(())
}

/// Where `part`, a slice of `whole`, begins in it.
fn offset(whole: &str, part: &str) -> usize {
    (part.as_ptr() as usize).saturating_sub(whole.as_ptr() as usize).min(whole.len())
}

fn from_json(value: serde_json::Value) -> Option<toml::Value> {
    Some(match value {
        serde_json::Value::Null => return None,
        serde_json::Value::Bool(b) => toml::Value::Boolean(b),
        serde_json::Value::String(text) => toml::Value::String(text),
        serde_json::Value::Number(n) => match n.as_i64() {
            Some(n) => toml::Value::Integer(n),
            None => toml::Value::Float(n.as_f64().unwrap_or(f64::INFINITY)),
        },
        serde_json::Value::Array(items) => toml::Value::Array(items.into_iter().filter_map(from_json).collect()),
        serde_json::Value::Object(members) => {
            toml::Value::Table(members.into_iter().filter_map(|(k, v)| Some((k, from_json(v)?))).collect())
        }
    })
}

/// The members of a JSON object in their order, one name as often as it is there, each value where it stands.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Vec<(String, &'de RawValue)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                std::iter::from_fn(|| map.next_entry().transpose()).collect()
            }
        }
        deserializer.deserialize_map(Collect).map(Members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(text: &str) -> Vec<(String, String, String)> {
        keys("f", text).unwrap().into_iter().map(|k| (k.path, k.place, k.value.to_string())).collect()
    }

    fn row(path: &str, place: &str, value: &str) -> (String, String, String) {
        (path.into(), place.into(), value.into())
    }

    #[test]
    fn toml_and_json_give_the_same_keys_with_their_lines() {
        let toml = "a = 1\n[s]\nb = \"x\" # why\n[s.t]\nc = [1, 2]\n";
        let expected = [row("a", "f:1", "1"), row("s.b", "f:3", "\"x\""), row("s.t.c", "f:5", "[1, 2]")];
        assert_eq!(listed(toml), expected);
        let json = "{\n\"a\": 1,\n\"s\": {\"n\": null,\n\"b\": \"x\",\n\"t\":\n{\n\"c\": [1, 2]}}}";
        let expected = [row("a", "f:2", "1"), row("s.b", "f:4", "\"x\""), row("s.t.c", "f:7", "[1, 2]")];
        assert_eq!(listed(json), expected);
    }

    #[test]
    fn a_name_that_comes_twice_in_json_is_there_twice() {
        assert_eq!(listed(r#"{"a":1,"A":2,"a":3}"#).len(), 3);
    }

    #[test]
    fn what_is_malformed_is_told_with_its_place() {
        let said = |text: &str| keys("f", text).unwrap_err();
        assert!(said("[a]\nb = \n").starts_with("f:2: this is not TOML: "), "{}", said("[a]\nb = \n"));
        let json = said("{\n\"a\": 1,\n\"b\" 2}");
        assert!(json.starts_with("f:3:5: this is not JSON: expected `:`"), "{json}");
        assert!(said("{\"a\":1} x").contains("trailing characters"));
        let inner = said("{\n\"s\":\n{\n\"b\": 1e999}}");
        assert!(inner.starts_with("f:4:"), "{inner}");
    }

    #[test]
    fn deep_nesting_is_an_error_or_one_value_and_never_a_crash() {
        let deep = |open: &str, close: &str, n: usize| format!("{}1{}", open.repeat(n), close.repeat(n));
        assert!(keys("f", &deep("{\"a\":", "}", 100_000)).is_err());
        assert_eq!(keys("f", &deep("{\"a\":", "}", 100)).unwrap().len(), 1);
        assert!(keys("f", &format!("a = {}", deep("[", "]", 100_000))).is_err());
    }
}
